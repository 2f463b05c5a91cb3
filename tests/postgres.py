"""A PostgreSQL of its own, from the distribution's package, in a folder of its own."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: int(path.parent.name))


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start a server that has one empty database; give its address as SQLAlchemy's asyncpg wants it.

    It refuses to run as root, and is the package's user `postgres` then.
    """
    assert BINARIES is not None
    folder.mkdir(parents=True)
    ours: list[str] = []
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        ours = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*ours, str(BINARIES / program), *arguments], capture_output=True, text=True, check=False, cwd="/"
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run("initdb", "--pgdata", str(data), "--auth", "trust", "--username", "nightjar", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    run("pg_ctl", "--pgdata", str(data), "--wait", "--log", str(folder / "log"), "--options", options, "start")
    try:
        run("createdb", "--host", "127.0.0.1", "--port", str(port), "--username", "nightjar", "prefect")
        yield f"postgresql+asyncpg://nightjar@127.0.0.1:{port}/prefect"
    finally:
        run("pg_ctl", "--pgdata", str(data), "--mode", "immediate", "stop")
