"""A stack of this checkout in its own folder, started by `make stack`, and a browser for its UI."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nightjar.stack.state import StackState, read_state
from tests.browser import CHROMIUM, Browser
from tests.conftest import need
from tests.loopback import SSHD

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = Path(os.environ.get("NIGHTJAR_SCREENSHOTS", ROOT / "reports" / "screenshots"))
UP_S = 600  # initdb, migrations, a server's import: a minute on a machine of its own, many on a busy one


class Running:
    """A running stack and the commands of its user."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "artifacts"
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "NIGHTJAR_"))}
        self.environment = own | {
            "NIGHTJAR_STACK": str(folder / "stack"),
            "NIGHTJAR_STORE": str(self.store),
            "NIGHTJAR_HISTORY": str(folder / "history"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "COLUMNS": "200",
        }

    def make(self, target: str) -> subprocess.CompletedProcess[str]:
        """Run a target of the Makefile as docs/nightly.md says, without installing anything."""
        return self._run("make", "-o", ".venv/installed", target, f"BIN={Path(sys.executable).parent}")

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `nightjar …` with the variables that `make stack` prints."""
        boards = self.folder / "stack" / "board" / "boards.toml"
        more = {"PREFECT_API_URL": self.api, "NIGHTJAR_BOARDS": str(boards)} if self.state else {}
        return self._run(sys.executable, "-m", "nightjar.cli.main", *words, **more)

    def _run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * UP_S,
            check=False,
        )

    @property
    def state(self) -> StackState | None:
        return read_state(self.folder / "stack")

    @property
    def ui(self) -> str:
        assert self.state is not None
        return f"http://127.0.0.1:{self.state.ports['server']}"

    @property
    def api(self) -> str:
        return f"{self.ui}/api"

    def kill(self, service: str) -> int:
        """SIGKILL a service's process; return how often it was restarted before."""
        assert self.state is not None
        found = self.state.parts[service]
        os.kill(found.pid, signal.SIGKILL)
        return found.restarts

    def until(self, arrived: Callable[[], Any], what: str, limit_s: float = UP_S) -> Any:
        """Wait until a condition holds and return its value; an unreachable server means not yet."""
        end = time.monotonic() + limit_s
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if value := arrived():
                    return value
            assert time.monotonic() < end, f"{what} did not come within {limit_s:.0f} s; {self.state}\n{self.logs()}"
            time.sleep(0.3)

    def well(self) -> bool:
        """Whether every service is healthy, done or stopped."""
        return self.state is not None and self.state.well

    def ask(self, path: str, **said: Any) -> Any:
        """Post to the server's API."""
        answer = httpx.post(f"{self.api}/{path}", json=said, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def run(self, run_id: str) -> dict[str, Any]:
        """Read one flow run."""
        answer = httpx.get(f"{self.api}/flow_runs/{run_id}", timeout=60)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def stages(self, run_id: str) -> dict[str, str]:
        """Return the current state of each stage of a flow run."""
        asked = {"flow_runs": {"id": {"any_": [run_id]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return {task["name"]: task["state_name"] for task in self.ask("task_runs/filter", **asked)}

    def logs(self) -> str:
        """Return the end of every service's log."""
        found = sorted((self.folder / "stack" / "logs").glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in found)


def need_stack() -> None:
    """Skip if a program of the stack is missing."""
    postgres = shutil.which("postgres") or list(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    need("postgresql", bool(postgres), "apt install postgresql")
    need("sshd", SSHD is not None and shutil.which("ssh") is not None, "apt install openssh-server openssh-client")


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder that PostgreSQL's account can enter, unlike pytest's, with a short path, as sockets need."""
    folder = Path(tempfile.mkdtemp(prefix="nightjar-stack-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def stack(place: Path) -> Iterator[Running]:
    """A running stack."""
    need_stack()
    running = Running(place)
    with (place / "up.log").open("w") as log:
        supervisor = subprocess.Popen(
            ["make", "-o", ".venv/installed", "stack", f"BIN={Path(sys.executable).parent}"],
            cwd=ROOT,
            env=running.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + UP_S
        while "the UI is at" not in (place / "up.log").read_text():
            assert supervisor.poll() is None, (place / "up.log").read_text() + running.logs()
            assert time.monotonic() < end, (place / "up.log").read_text() + running.logs()
            time.sleep(0.3)
        yield running
    finally:
        running.make("stack-stop")
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(60)


@pytest.fixture(scope="session")
def browser(place: Path) -> Iterator[Browser]:
    """A browser for the session."""
    need("chromium", CHROMIUM is not None, "apt install chromium")
    (place / "browser").mkdir()
    opened = Browser(place / "browser")
    yield opened
    opened.close()
