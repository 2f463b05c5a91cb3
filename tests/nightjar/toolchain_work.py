"""What the tests let a toolchain's process do; standard library only."""

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

loaded_in: list[int] = []  # processes


def load_sdk() -> None:
    """Take note of who imports the SDK; a server does once for all calls."""
    if not loaded_in:
        loaded_in.append(os.getpid())


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do what `job["do"]` names."""
    match job["do"]:
        case "sdk":
            return {"loaded_in": loaded_in, "pid": os.getpid()}
        case "echo":
            Path("litter.txt").write_text("x")
            return {"said": job["say"], "cwd": str(Path.cwd()), "path": sys.path[:2]}
        case "noise":
            for done in range(3):
                print(f"\rI Quantizating :  {33 * done}%|####    | {done}/3 [00:00<00:00, 9it/s]", end="", flush=True)
            print("\n\x1b[1;33mW\x1b[0m \x1b[1;33mload: a warning\x1b[0m", flush=True)
        case "memory":
            bytearray(1 << 62)
        case "hold":  # beside the child that holds as much, and an address space that is only reserved
            Path(job["pids"]).write_text(str(os.getpid()))
            reserved = mmap.mmap(-1, 64 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE
            kept, child = bytearray(b"x") * (job["mib"] << 20), os.fork()
            kept[:: mmap.PAGESIZE] = b"y" * len(kept[:: mmap.PAGESIZE])  # a fork shares until somebody writes
            time.sleep(job["seconds"])
            if not child:
                os._exit(0)
            reserved.close()
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
