"""Send a hundred seeded SIGKILLs to host, session or both, about 15 minutes; `make test` sends ten."""

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
