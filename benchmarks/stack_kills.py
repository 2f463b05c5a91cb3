"""Kill server, database and worker during nights, in turn and together, each night with its own seed.

    python benchmarks/stack_kills.py [ROUNDS]     # 20 by default, about two minutes each; `make test` does one

The seed of a round decides which process dies first and after how many finished stages; pytest prints it in the test's
name. Nights of odd seeds dispatch their cells to the work queues.
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
