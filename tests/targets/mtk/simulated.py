"""What the tests run inside the doubles' environment: one part in the vendor's executor, and calls that cannot work."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.toolchains.worker import stub_target_packages

stub_target_packages("targets.mtk.toolchain.simulate")

from targets.mtk.toolchain.simulate import open_runner  # noqa: E402


class Crashes:
    """An executor that raises."""

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        raise ValueError("it broke\nsomewhere inside")


class Silent:
    """An executor that gives nothing."""

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return []


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run a sample, store its outputs, and collect what is said to wrong calls."""
    binary, part = Path(job["binary"]), job["part"]
    parts = json.loads((binary / "binary.json").read_text())["parts"]
    runner = open_runner(binary, {part: parts[part]})
    sample = dict(np.load(job["sample"]))
    np.savez("out.npz", **runner.run(part, sample))
    name = "mask" if "mask" in sample else next(iter(sample))
    Path("damaged.tflite").write_bytes(b"....TFL3")
    calls = {
        "part": lambda: runner.run("joiner", sample),
        "input": lambda: runner.run(part, {}),
        "shape": lambda: runner.run(part, {**sample, name: sample[name][0]}),
        "damaged": lambda: open_runner(Path(), {part: {**parts[part], "tflite": {"file": "damaged.tflite"}}}),
        "file": lambda: open_runner(Path(), {part: {**parts[part], "tflite": {"file": "x.tflite"}}}),
    }
    for case, executor in (("crash", Crashes()), ("nothing", Silent())):
        broken = open_runner(binary, {part: parts[part]})
        broken.handles[part] = executor
        calls[case] = lambda broken=broken: broken.run(part, sample)
    said = {}
    for case, call in calls.items():
        try:
            call()
        except RuntimeError as exc:
            said[case] = str(exc)
    runner.close()
    return {"said": said}
