"""What a test makes the doubles do wrong: `inject.json` in the environment's folder, read anew at every call.

{"translate": [fault, …], "optimize": […], "compile": […], "infer": […], "load": […], "open": […], "run": […]}, each
list used up call by call; a fault is {"raise": class, "say": message}, {"print": lines}, {"sleep": seconds},
{"result": …}, {"drop": […]}, or null.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import nightjar

ROOT = Path(__file__).resolve().parents[4]
# The doubles compute with what nightjar has. A session's archive comes first on the path and holds only some of its
# modules, so every package gets this repository's folder as a second place to look.
nightjar.__path__ = [*nightjar.__path__, str(ROOT / "nightjar")]
for _init in sorted((ROOT / "nightjar").glob("*/__init__.py")):
    if _init.read_text(encoding="utf-8") == "":  # dataset/ imports its reader
        _package = importlib.import_module(f"nightjar.{_init.parent.name}")
        _package.__path__ = [*_package.__path__, str(_init.parent)]


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
