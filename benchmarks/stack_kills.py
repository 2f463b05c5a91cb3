"""Nights in which server, database and worker are killed in turn and together, each with a seed of its own.

    python benchmarks/stack_kills.py [ROUNDS]     # 20 in place of the one that `make test` does, some two minutes each

The seed of a round decides who dies first and after how many finished stages; it names the test that pytest prints.
Nights of odd seeds hand their cells out to the work queues.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    rounds = sys.argv[1] if len(sys.argv) > 1 else "20"
    command = [sys.executable, "-m", "pytest", "-q", "tests/stack/test_kills.py"]
    sys.exit(
        subprocess.run(command, cwd=ROOT, env=os.environ | {"NIGHTJAR_STACK_ROUNDS": rounds}, check=False).returncode
    )
