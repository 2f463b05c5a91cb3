"""What the tests let a toolchain's process do; standard library only."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do what `job["do"]` names."""
    match job["do"]:
        case "echo":
            Path("litter.txt").write_text("x")
            return {"said": job["say"], "cwd": str(Path.cwd()), "path": sys.path[:2]}
        case "noise":
            for done in range(3):
                print(f"\rI Quantizating :  {33 * done}%|####    | {done}/3 [00:00<00:00, 9it/s]", end="", flush=True)
            print("\n\x1b[1;33mW\x1b[0m \x1b[1;33mload: a warning\x1b[0m", flush=True)
        case "memory":
            bytearray(8 << 30)
        case "bad_alloc":
            print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
            os.abort()
        case "signal":
            os.kill(os.getpid(), signal.Signals[job["signal"]])
        case "sleep":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            Path(job["pids"]).write_text(f"{os.getpid()} {child.pid}")
            time.sleep(60)
        case "import":
            raise ImportError("libGL.so.1: cannot open shared object file")
        case "refuse":
            raise ValueError(
                'Traceback (most recent call last):\n  File "sdk.py", line 1\nValueError: Invalid platform'
            )
        case "exit":
            print("E build: this op is not supported", flush=True)
            os._exit(3)
    return {}
