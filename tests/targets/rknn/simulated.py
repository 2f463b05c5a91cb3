"""What the tests run inside the toolchain's environment: simulate stored inputs, after a build or restored."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.toolchains.worker import stub_target_packages

stub_target_packages("targets.rknn.toolchain.simulate")

from targets.rknn.toolchain.sdk import call_toolkit, open_toolkit  # noqa: E402
from targets.rknn.toolchain.simulate import open_runner  # noqa: E402


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do what `job["do"]` names, with everything that reaches stdout counted."""
    sys.stdout.flush()
    saved, out = os.dup(1), os.open("stdout.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(out, 1)
    found: dict[str, Any] = {"run": run, "wrong": wrong, "in_process": in_process, "zoo": zoo}[job["do"]](job)
    sys.stdout.flush()
    os.dup2(saved, 1)
    return {**found, "printed": Path("stdout.txt").read_text()}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run every stored sample of every part and store the outputs beside it."""
    binary = Path(job["binary"])
    parts = json.loads((binary / "binary.json").read_text())["parts"]
    seconds = {}
    for part, samples in job["samples"].items():
        start = time.perf_counter()
        runner = open_runner(binary, {part: parts[part]})
        seconds[part] = time.perf_counter() - start
        for sample in samples:
            np.savez(sample["out"], **runner.run(part, dict(np.load(sample["in"]))))
        runner.close()
    return {"open_s": seconds}


def zoo(job: dict[str, Any]) -> dict[str, Any]:
    """Decode as rknn_model_zoo's examples/whisper/python/whisper.py does; its prompt is 4 tokens three times.

    An English-only model, which the zoo does not have, has 2 tokens six times.
    """
    binary = Path(job["binary"])
    parts = json.loads((binary / "binary.json").read_text())["parts"]
    runner, heard = open_runner(binary, parts), []
    for mel in job["mels"]:
        audio = runner.run("encoder", {"mel": np.load(mel)})["hidden"]
        prompt, next_token, text = list(job["prompt"]), -1, []
        tokens, pop_id = prompt * (12 // len(prompt)), 12
        while next_token != job["eot"] and len(text) < job["most"]:
            out = runner.run("decoder", {"tokens": np.array([tokens], np.int64), "audio": audio})["out"]
            next_token = int(out[0, -1].argmax())
            tokens.append(next_token)
            if next_token == job["eot"]:
                break
            if next_token > job["timestamp_begin"]:
                break  # the zoo skips it, its window stands still, and its guard ends the loop
            pop_id = max(pop_id - 1, len(prompt))
            tokens.pop(pop_id)
            text.append(next_token)
        heard.append(text)
    return {"tokens": heard}


def wrong(job: dict[str, Any]) -> dict[str, Any]:
    """Collect what is said to calls that cannot work."""
    binary = Path(job["binary"])
    parts = json.loads((binary / "binary.json").read_text())["parts"]
    good = dict(np.load(job["sample"]))
    name = next(iter(good))
    runner = open_runner(binary, {"encoder": parts["encoder"]})
    (Path("damaged.onnx")).write_bytes(b"no graph")
    (Path("damaged.json")).write_text((binary / parts["encoder"]["simulator"]["tables"]).read_text())
    damaged = {"encoder": {"simulator": {"graph": "damaged.onnx", "tables": "damaged.json"}}}
    calls = {
        "part": lambda: runner.run("joiner", good),
        "input": lambda: runner.run("encoder", {**good, "more": good[name]}),
        "shape": lambda: runner.run("encoder", {name: good[name][:, :1]}),
        "dtype": lambda: runner.run("encoder", {name: good[name].astype(np.float64)}),
        "file": lambda: open_runner(binary, {"encoder": {"simulator": {"graph": "x", "tables": "y"}}}),
        "damaged": lambda: open_runner(Path.cwd(), damaged),
    }
    said = {}
    for case, call in calls.items():
        try:
            call()
        except RuntimeError as exc:
            said[case] = str(exc)
    return {"said": said}


def in_process(job: dict[str, Any]) -> dict[str, Any]:
    """Build as compile.py does and simulate at once; hold the restored simulator, then the runner, against that."""
    part, sample = job["part"], dict(np.load(job["sample"]))
    toolkit = open_toolkit()
    if "graph" in job:
        call_toolkit("config", toolkit.config, target_platform="rk3588")
        call_toolkit("load_onnx", toolkit.load_onnx, model=job["graph"])
        call_toolkit("build", toolkit.build, do_quantization=False)
    else:
        files = (job[key] for key in ("model", "data", "cfg"))
        call_toolkit("hybrid_quantization_step2", toolkit.hybrid_quantization_step2, *files)
    call_toolkit("init_runtime", toolkit.init_runtime)
    wanted = call_toolkit("inference", toolkit.inference, inputs=list(sample.values()), data_format="nchw")
    binary = Path(job["binary"])
    parts = json.loads((binary / "binary.json").read_text())["parts"]
    plain, opened = (open_runner(binary, {part: parts[part]}) for _ in range(2))
    restored = plain.handles[part].inference(inputs=list(sample.values()), data_format="nchw")
    equal = [bool(np.array_equal(a, b)) for a, b in zip(wanted, restored, strict=True)]
    found = [np.ravel(array).astype(np.float64) for array in opened.run(part, sample).values()]
    exact = [np.ravel(array).astype(np.float64) for array in wanted]
    noise = [float(((a - b) ** 2).sum() / (a**2).sum()) for a, b in zip(exact, found, strict=True)]
    return {"equal": equal, "noise": noise}
