"""Time export and build for the RK3588 against the vendor's calls alone and against rknn_model_zoo's scripts.

    .venv/bin/python benchmarks/rknn.py [--repeats N] [--json F]

Each round makes the same graphs (protocol window, 20 s, float16) three times: by the stages; by torch.onnx.export and
one process with only the toolkit's calls; by an export script and a convert script per part, each in its own process.
Needs `nightjar toolchain install rknn`, and real weights as benchmarks/speed.py does. Exits with 1 if a ratio misses
its bound, with 2 if weights or toolkit are absent.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.speed import WEIGHTS, timed  # noqa: E402
from nightjar.errors import NightjarError  # noqa: E402
from nightjar.plugins.recipe import Recipe  # noqa: E402
from nightjar.toolchains.environment import Toolchain, toolchain  # noqa: E402

RECIPE = {"window_s": 20, "decoder": "window", "positional": "last", "host_embedding": False}
PARTS = ("encoder", "decoder")

EXPORT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from models.whisper.checkpoint import load_checkpoint
from models.whisper.export import OPSET, build_parts
from nightjar.plugins.recipe import Recipe
import torch
for name, part in build_parts(load_checkpoint(Path(sys.argv[2])), Recipe(**{recipe})).items():
    torch.onnx.export(part.module, tuple(part.inputs.values()), f"{{name}}.onnx", input_names=list(part.inputs),
                      output_names=part.outputs, opset_version=OPSET, dynamo=False)
"""

CONVERT = """
import sys
from rknn.api import RKNN
for name in sys.argv[1:]:
    rknn = RKNN(verbose=False)
    rknn.config(target_platform="rk3588")
    assert rknn.load_onnx(model=f"{name}.onnx") == 0
    assert rknn.build(do_quantization=False) == 0
    assert rknn.export_rknn(f"{name}.rknn") == 0
    rknn.release()
"""


def stages(folder: Path) -> None:
    """Export and build as a port does."""
    from models.whisper.export import export
    from targets.rknn import compile
    from targets.rknn.options import Options

    export(WEIGHTS, Recipe(**RECIPE), folder / "graphs")
    compile(folder / "graphs", None, Options(precision="fp"), folder / "binary")


def vendor_calls(sdk: Toolchain, folder: Path) -> None:
    """Call torch.onnx.export, then the toolkit for both parts in one process."""
    _run(sys.executable, EXPORT.format(recipe=RECIPE), [str(ROOT), str(WEIGHTS)], folder)
    _run(str(sdk.python), CONVERT, list(PARTS), folder)


def zoo(sdk: Toolchain, folder: Path) -> None:
    """Run an export script, then a convert script for each part, as rknn_model_zoo does."""
    _run(sys.executable, EXPORT.format(recipe=RECIPE), [str(ROOT), str(WEIGHTS)], folder)
    for part in PARTS:
        _run(str(sdk.python), CONVERT, [part], folder)


def _run(python: str, script: str, arguments: list[str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run([python, "-W", "ignore", "-c", script, *arguments], cwd=folder, check=True, capture_output=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        sdk = toolchain("rknn")
    except NightjarError as error:
        print(error, file=sys.stderr)
        return 2
    if not WEIGHTS.exists():
        print(f"no {WEIGHTS}: run `../shared/models/fetch`, or set NIGHTJAR_MODELS", file=sys.stderr)
        return 2
    rounds: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(arguments.repeats):
            folder = Path(name) / str(number)
            folder.mkdir()
            ours_s, _ = timed(lambda folder=folder: stages(folder))
            calls_s, _ = timed(lambda folder=folder: vendor_calls(sdk, folder / "calls"))
            zoo_s, _ = timed(lambda folder=folder: zoo(sdk, folder / "zoo"))
            rounds.append((ours_s, calls_s, zoo_s))
            print(
                f"  round {number + 1}: stages {ours_s:.1f} s, vendor calls {calls_s:.1f} s, zoo {zoo_s:.1f} s",
                flush=True,
            )
    found: list[dict[str, Any]] = []
    for what, bound, against in (("the same vendor calls", 1.10, 1), ("rknn_model_zoo's way", 1.05, 2)):
        ratio = statistics.median(each[0] / each[against] for each in rounds)
        found.append({"what": f"export and build / {what}", "ratio": ratio, "bound": bound, "ok": ratio <= bound})
        print(f"{ratio:6.2f}  <= {bound:.2f}  {'ok  ' if ratio <= bound else 'MISS'}  {found[-1]['what']}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": rounds, "found": found}, indent=1) + "\n")
    return 0 if all(each["ok"] for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
