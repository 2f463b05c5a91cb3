"""What the tests run inside the doubles' environment: a part on a stored sample, with what reaches stdout counted."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.toolchains.worker import stub_target_packages

stub_target_packages("targets.hailo.toolchain.simulate")

from targets.hailo.toolchain.simulate import open_runner  # noqa: E402


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run `job["part"]` of a binary and store its outputs."""
    sys.stdout.flush()
    saved, out = os.dup(1), os.open("stdout.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    binary, part = Path(job["binary"]), job["part"]
    entry = json.loads((binary / "binary.json").read_text())["parts"][part]
    runner = open_runner(binary, {part: entry})
    np.savez(job["out"], **runner.run(part, dict(np.load(job["in"]))))
    runner.close()
    sys.stdout.flush()
    os.dup2(saved, 1)
    os.close(saved)
    os.close(out)
    return {"printed": Path("stdout.txt").read_text()}
