"""A hundred seeded SIGKILLs of host, session or both, in place of the ten that `make test` does; about 15 minutes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    kills = sys.argv[1] if len(sys.argv) > 1 else "100"
    test = "tests/flows/test_kills.py::test_kills_lose_nothing_that_was_finished"
    command = [sys.executable, "-m", "pytest", "-q", test]
    sys.exit(subprocess.run(command, cwd=ROOT, env=os.environ | {"NIGHTJAR_KILLS": kills}, check=False).returncode)
