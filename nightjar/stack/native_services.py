"""The services of docker-compose.yml as native programs: what their images would have brought comes from packages.

Commands, environment and health checks are the file's own, with the addresses and paths of this machine put in.
"""

import getpass
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from nightjar.errors import PackageMissing, StackBroken
from nightjar.paths import ROOT
from nightjar.stack.compose_file import Health, Service, read_topology

DATABASE_USER = "postgres"  # PostgreSQL refuses root; Debian's package makes this account
ENVIRONMENT_MARK = "NIGHTJAR_STACK_PART"
LOADED = {"prefect": "prefect", "nightjar": "nightjar.cli.main"}  # console scripts, as modules of this very Python


class Part(NamedTuple):
    """A service as it runs on this machine."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    user: str | None  # another account than ours
    needs: dict[str, str]
    health: Health | None
    restart: str
    stop_signal: str
    stop_grace_s: float


def native_parts(folder: Path, ports: dict[str, int]) -> list[Part]:
    """Turn the services of docker-compose.yml into parts of the stack in `folder`, in the order of their needs.

    Raises PackageMissing for a program that has to be installed first.
    """
    programs = {"database": postgres_program("postgres").parent, "board": sshd_program().parent}
    here = Here(folder, ports)
    return [_part(service, here, programs) for service in read_topology().values()]


def prepare(folder: Path, ports: dict[str, int]) -> None:
    """Make what the parts start from: the database's files, the board's configuration."""
    here = Here(folder, ports)
    for name in ("server", "worker", "logs", "board"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("boards.toml", "ssh_config", "sshd_config"):
        text = (ROOT / "deployments" / name).read_text(encoding="utf-8")
        if name != "boards.toml" or not (folder / "board" / name).exists():  # people add their own boards to it
            (folder / "board" / name).write_text(here.put_into(text), encoding="utf-8")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it as root
    make_database(database_folder(folder), (folder / "secrets" / "database_password").read_text())


class Here:
    """The addresses and paths that stand in docker-compose.yml, and those that they are on this machine."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self.texts = {
            "database:5432": f"127.0.0.1:{ports['database']}",
            "127.0.0.1:5432": f"127.0.0.1:{ports['database']}",
            "server:4200": f"127.0.0.1:{ports['server']}",
            "127.0.0.1:4200": f"127.0.0.1:{ports['server']}",
            "127.0.0.1:8080": f"127.0.0.1:{ports['worker']}",
            "127.0.0.1/22": f"127.0.0.1/{ports['board']}",
            "HostName board": "HostName 127.0.0.1",
            "User nightjar": f"User {getpass.getuser()}",
            "Port 22": f"Port {ports['board']}",
            "0.0.0.0": "127.0.0.1",  # a container's all is this machine's own
            "/run/secrets/": f"{folder}/secrets/",
            "/etc/nightjar/": f"{folder}/board/",
            "/var/lib/nightjar/": f"{folder}/",
            "/opt/board/bin/python": sys.executable,
        }
        self.values = {"4200": str(ports["server"]), "8080": str(ports["worker"])}  # where nothing else stands
        self._pattern = re.compile("|".join(map(re.escape, self.texts)))

    def put_into(self, text: str) -> str:
        """Put this machine's addresses and paths in place of the containers'."""
        return self.values.get(text) or self._pattern.sub(lambda found: self.texts[found[0]], text)


def _part(service: Service, here: Here, programs: dict[str, Path]) -> Part:
    folder = Path(here.put_into("/var/lib/nightjar/"))
    command = tuple(map(here.put_into, service.command))
    user = None
    if service.name == "database":
        command, user = _database_command(folder, here), _database_user()
    environment = {} if service.name == "database" else {k: here.put_into(v) for k, v in service.environment.items()}
    health = service.health
    if health is not None:
        health = health._replace(test=_run_by(tuple(map(here.put_into, health.test)), programs.get(service.name)))
    return Part(
        name=service.name,
        command=_run_by(command, programs.get(service.name)),
        environment=_own_environment() | environment | {ENVIRONMENT_MARK: f"{folder}:{service.name}"},
        user=user,
        needs=service.needs,
        health=health,
        restart=service.restart,
        stop_signal=service.stop_signal,
        stop_grace_s=service.stop_grace_s,
    )


def _run_by(command: tuple[str, ...], programs: Path | None) -> tuple[str, ...]:
    """Name a command's program as it is found here: our own by this very Python, a package's where that put it."""
    name, *rest = command
    if name == "python":
        return (sys.executable, *rest)
    if name in LOADED:
        return (sys.executable, "-m", LOADED[name], *rest)
    if programs is not None and (programs / Path(name).name).exists():
        return (str(programs / Path(name).name), *rest)
    return command


def _own_environment() -> dict[str, str]:
    """Return our environment without what it says of other Prefect servers; this checkout's code comes first."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return own | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [own.get("PYTHONPATH")])])}


def postgres_program(name: str) -> Path:
    """Find a program of PostgreSQL, Debian's newest or the PATH's; raises PackageMissing."""
    packaged = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    found = packaged[-1] if packaged else shutil.which(name)
    if not found:
        raise PackageMissing(
            "no PostgreSQL server on this machine, which the stack keeps its runs in: `apt install postgresql`"
        )
    return Path(found)


def sshd_program() -> Path:
    """Find OpenSSH's server; raises PackageMissing."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not found:
        raise PackageMissing(
            "no sshd on this machine, which stands in for the stack's board: `apt install openssh-server`"
        )
    return Path(found).absolute()


def _database_user() -> str | None:
    return DATABASE_USER if os.getuid() == 0 else None


def database_folder(folder: Path) -> Path:
    """Name where the database's files lie: in the stack's folder, unless its account may not walk there."""
    if os.getuid() or all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents) if parent.exists()):
        return folder / "database"
    return Path("/var/lib/postgresql/nightjar") / hashlib.sha256(str(folder).encode()).hexdigest()[:12]


def _database_command(folder: Path, here: Here) -> tuple[str, ...]:
    port = here.texts["127.0.0.1:5432"].rpartition(":")[2]
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
    words = (word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
    return ("postgres", "-D", str(database_folder(folder)), *words)


def make_database(data: Path, password: str) -> None:
    """Make an empty database whose only account is `nightjar`, unless there is one; raises StackBroken.

    A kill on the way leaves nothing that would pass for one: the folder gets its name last.
    """
    if data.exists():
        return
    user, new = _database_user(), data.with_name(f"{data.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    new.mkdir(mode=0o700)
    if user:
        shutil.chown(new, user, user)
    # Nobody gets in before there is a password: initdb takes it from a file, and that account may not read ours.
    how = ("--username=nightjar", "--auth=reject", "--encoding=UTF8", "--locale=C.UTF-8")
    _database_step("initdb", (*how, "-D", str(new)), user)
    said = f"ALTER ROLE nightjar PASSWORD '{password}';\n\nCREATE DATABASE nightjar;\n\n"
    _database_step("postgres", ("--single", "-j", "-D", str(new), "postgres"), user, said)
    (new / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
    new.rename(data)


def _database_step(program: str, words: tuple[str, ...], user: str | None, said: str = "") -> None:
    done = subprocess.run(
        [str(postgres_program(program)), *words],
        input=said,
        user=user,
        group=user,
        extra_groups=[] if user else None,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())[-300:]
        raise StackBroken(
            f"{program} could not make the stack's database ({reason}): mend that, then `make stack` again"
        )
