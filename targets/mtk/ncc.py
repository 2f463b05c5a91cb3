"""Compile a .tflite to a .dla with ncc-tflite, and read from its output where each operator runs.

The command line is that of public scripts for MT8371 (superLin006/MTK_model_zoo); success is exit status 0 and a file
that is not empty. MT8189's family has no EDPA, and a plan with one does not load ("Found an unsupported target:
EDPA_1_2"). Such a plan is compiled again without the bridge that needs the EDPA; outputs then keep the NPU's layout.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from nightjar.errors import Broken, ToolchainFailed
from nightjar.process import last_line, run_logged
from nightjar.toolchains.environment import Toolchain

COMPILE_S = 1800.0
PROGRAM = "ncc-tflite"
PROFILES = {"mt8371": (("mdla5.3", "edma3.6"), ("--l1-size-kb=256", "--num-mdla=1"))}  # NPU and DMA; sizes
FLAGS = ("--relax-fp32", "--opt-accuracy", "--opt-footprint", "--show-exec-plan", "--show-io-info")
NO_BRIDGE = ("--suppress-output", "--disallow-bridge")
BRIDGE_DISALLOWED = {"auto": (False, True), "allow": (False,), "disallow": (True,)}  # tried while a plan needs an EDPA
TARGET = re.compile(r"\b(MDLA|EDMA|EDPA|VPU|GPU|CPU|TFLITE_CPU|DSP|APU)((?:[_. ]\d+)*)\b")
OPERATOR = re.compile(r"\b(MTKEXT_[A-Z0-9_]+|[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)\b")
ON_NPU = ("MDLA", "EDMA")


def compile_dla(
    found: Toolchain, tflite: Path, dla: Path, soc: str, bridge: Literal["auto", "allow", "disallow"]
) -> dict[str, Any]:
    """Write a .dla; return {plan, off_npu, command, bridge, version}; off_npu: counts of operators not on MDLA or EDMA.

    Raises ToolchainMissing, ToolchainFailed, and Broken for a plan on hardware that the SoC lacks.
    """
    for disallowed in BRIDGE_DISALLOWED[bridge]:
        output, command, version = _run(found, tflite, dla, soc, disallowed)
        plan = read_plan(output)
        if not any(step["target"].startswith("EDPA") for step in plan):
            break
    else:
        raise Broken(f"{dla.name} needs an EDPA, which {soc} lacks, so no board loads it: give bridge auto or disallow")
    off = Counter(step["op"] for step in plan if not step["target"].startswith(ON_NPU))
    return {
        "plan": plan,
        "off_npu": dict(sorted(off.items())),
        "command": command,
        "bridge": "disallowed" if disallowed else "allowed",
        "version": version,
    }


def arguments(soc: str, version: str, disallowed: bool) -> list[str]:
    """Return ncc-tflite's options for a SoC; version 9 and later take the SoC's name."""
    units, sizes = PROFILES[soc]
    major = version.partition(".")[0]
    if major.isdigit() and int(major) >= 9:
        place = [f"--platform-config={soc}"]
    else:
        place = [f"--arch={units[0] if disallowed else ','.join(units)}", *sizes]
    return [*place, *FLAGS, *(NO_BRIDGE if disallowed else ())]


def read_plan(output: str) -> list[dict[str, str]]:
    """Read an execution plan, the lines with a target and an operator; raises Broken where there is none."""
    steps = []
    for line in output.splitlines():
        target = TARGET.search(line)
        if target and (op := OPERATOR.search(TARGET.sub(" ", line, count=1))):
            steps.append({"op": op[1], "target": re.sub(r"[. ]", "_", target[0])})
    if not steps:
        raise Broken(
            "ncc-tflite printed no readable execution plan, so it is unknown what runs on the NPU: "
            "look at toolchain.txt beside the build and report it with its version"
        )
    return steps


def _run(found: Toolchain, tflite: Path, dla: Path, soc: str, disallowed: bool) -> tuple[str, list[str], str]:
    program = found.program(PROGRAM)
    options = arguments(soc, program.version, disallowed)
    dla.unlink(missing_ok=True)
    log_file = found.log_path(f"{PROGRAM}.{dla.stem}")
    log_file.unlink(missing_ok=True)
    command = [str(program.path), *options, "-d", dla.name, tflite.name]
    status = run_logged(command, program.environment(), dla.parent, log_file, COMPILE_S)
    output = log_file.read_text(encoding="utf-8", errors="replace")
    if status != 0 or not dla.is_file() or not dla.stat().st_size:
        dla.unlink(missing_ok=True)
        known = {None: f"it did not end within {COMPILE_S:g} s", 0: "it reports success and wrote nothing"}
        reason = known.get(status) or last_line(output) or f"exit status {status}"
        raise ToolchainFailed(
            f"ncc-tflite cannot compile {tflite.name}: {reason}; log in {log_file}: "
            "`nightjar lint --target mtk` lists the operators that the NPU lacks"
        )
    return output, [PROGRAM, *options], program.version
