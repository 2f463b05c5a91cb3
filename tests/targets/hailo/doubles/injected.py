"""What a test makes the doubles do wrong: `inject.json` in the environment's folder, read anew at every call.

{"translate": [fault, …], "optimize": […], "compile": […], "infer": […], "load": […], "open": […], "run": […]}, each
list used up call by call; a fault is {"raise": class, "say": message}, {"print": lines}, {"sleep": seconds},
{"result": …}, {"drop": […]}, or null.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import nightjar

ROOT = Path(__file__).resolve().parents[4]
# The doubles compute with what nightjar has; of a session's folder, which is first on the path, only a part is here.
nightjar.__path__ = [*nightjar.__path__, str(ROOT / "nightjar")]


def place() -> Path:
    """Say where faults lie: the environment that runs, or the folder that a test in this process names."""
    return Path(os.environ.get("HAILO_DOUBLE") or sys.prefix) / "inject.json"


def fault(call: str) -> dict[str, Any]:
    """Take the next fault of a call from the list, {} for none."""
    path = place()
    if not path.is_file():
        return {}
    faults = json.loads(path.read_text())
    left = faults.get(call, [])
    if not left:
        return {}
    found = left.pop(0)
    path.write_text(json.dumps(faults))
    return found or {}


def strike(found: dict[str, Any]) -> None:
    """Print what a fault prints and raise what it raises, a class of that very name."""
    time.sleep(found.get("sleep", 0))
    for line in found.get("print", ()):
        print(line, flush=True)
    if "raise" in found:
        kind = found["raise"]
        known = {"MemoryError": MemoryError, "ImportError": ImportError, "KeyError": KeyError}
        raise known.get(kind, type(kind, (Exception,), {}))(found.get("say", ""))
