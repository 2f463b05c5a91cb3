"""The services of docker-compose.yml as native programs, from packages of this machine instead of images.

Commands, environment and health checks are the file's, with the addresses and paths of this machine.
"""

import getpass
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from nightjar.errors import PackageMissing, StackBroken
from nightjar.paths import ROOT
from nightjar.stack.compose_file import Service, read_topology

# PostgreSQL refuses root; Debian's package creates this account.
DATABASE_USER = None if os.getuid() else "postgres"
ENVIRONMENT_MARK = "NIGHTJAR_STACK_PART"
PYTHON_PROGRAMS = {"python": (), "prefect": ("-m", "prefect"), "nightjar": ("-m", "nightjar.cli.main")}


def native_services(folder: Path, ports: dict[str, int]) -> list[Service]:
    """Adapt the services of docker-compose.yml to the stack in `folder`, each after the services it needs.

    Raises PackageMissing for a program that is not installed.
    """
    place = Placement(folder, ports, f"{postgres_program('postgres').parent}:{sshd_program().parent}")
    return [_native(service, place) for service in read_topology().values()]


def prepare(folder: Path, ports: dict[str, int]) -> None:
    """Create what the services start from: folders, the database's files, the board's configuration."""
    place = Placement(folder, ports)
    for name in ("server", "worker", "logs", "board"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("boards.toml", "ssh_config", "sshd_config"):
        text = (ROOT / "deployments" / name).read_text(encoding="utf-8")
        if name != "boards.toml" or not (folder / "board" / name).exists():  # people add their own boards to it
            (folder / "board" / name).write_text(place.adapt(text), encoding="utf-8")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd requires it as root
    create_database(database_folder(folder), (folder / "secrets" / "database_password").read_text())


class Placement:
    """Replaces the addresses, paths and programs of docker-compose.yml by those of this machine."""

    def __init__(self, folder: Path, ports: dict[str, int], programs: str = "") -> None:
        self.folder, self.ports, self.programs = folder, ports, programs
        self._texts = {
            "database:5432": f"127.0.0.1:{ports['database']}",
            "127.0.0.1:5432": f"127.0.0.1:{ports['database']}",
            "server:4200": f"127.0.0.1:{ports['server']}",
            "127.0.0.1:4200": f"127.0.0.1:{ports['server']}",
            "127.0.0.1:8080": f"127.0.0.1:{ports['worker']}",
            "127.0.0.1/22": f"127.0.0.1/{ports['board']}",
            "HostName board": "HostName 127.0.0.1",
            "User nightjar": f"User {getpass.getuser()}",
            "Port 22": f"Port {ports['board']}",
            "0.0.0.0": "127.0.0.1",  # a container's 0.0.0.0 is published on loopback only
            "/run/secrets/": f"{folder}/secrets/",
            "/etc/nightjar/": f"{folder}/board/",
            "/var/lib/nightjar/": f"{folder}/",
            "/opt/board/bin/python": sys.executable,
        }
        self._values = {"4200": str(ports["server"]), "8080": str(ports["worker"])}  # only as a whole value
        self._pattern = re.compile("|".join(map(re.escape, self._texts)))

    def adapt(self, text: str) -> str:
        """Replace a container's addresses and paths."""
        return self._values.get(text) or self._pattern.sub(lambda found: self._texts[found[0]], text)

    def command(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Adapt a command; this Python runs its own scripts, other programs come from `programs` if that has them."""
        name, *rest = map(self.adapt, words)
        if name in PYTHON_PROGRAMS:
            return (sys.executable, *PYTHON_PROGRAMS[name], *rest)
        return (shutil.which(Path(name).name, path=self.programs) or name, *rest)


def _native(service: Service, place: Placement) -> Service:
    if service.name == "database":  # the image reads its own variables; the program needs arguments
        settings = {"port": place.ports["database"], "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        words = (word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
        start = ("postgres", "-D", str(database_folder(place.folder)), *words)
        service = service._replace(command=start, environment={}, user=DATABASE_USER)
    # Our environment without Prefect's variables, which name other servers; this checkout's code is first.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    own["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [own.get("PYTHONPATH")])])
    own |= {name: place.adapt(value) for name, value in service.environment.items()}
    own[ENVIRONMENT_MARK] = f"{place.folder}:{service.name}"
    health = service.health
    return service._replace(
        command=place.command(service.command),
        environment=own,
        health=health and health._replace(test=place.command(health.test)),
    )


def postgres_program(name: str) -> Path:
    """Find a program of PostgreSQL, Debian's newest version or on PATH; raises PackageMissing."""
    packaged = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    found = packaged[-1] if packaged else shutil.which(name)
    if not found:
        raise PackageMissing("PostgreSQL's server, the stack's database, is not installed: `apt install postgresql`")
    return Path(found)


def sshd_program() -> Path:
    """Find OpenSSH's server; raises PackageMissing."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not found:
        raise PackageMissing("sshd, the stack's stand-in board, is not installed: `apt install openssh-server`")
    return Path(found).absolute()


def database_folder(folder: Path) -> Path:
    """Return the database's folder: in the stack's folder, unless the database's account cannot reach that."""
    if os.getuid() or all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents) if parent.exists()):
        return folder / "database"
    return Path("/var/lib/postgresql/nightjar") / hashlib.sha256(str(folder).encode()).hexdigest()[:12]


def create_database(data: Path, password: str) -> None:
    """Create an empty database with the only account `nightjar`, unless it exists; raises StackBroken.

    The folder gets its name last, so that a kill leaves no incomplete database.
    """
    if data.exists():
        return
    new = data.with_name(f"{data.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    new.mkdir(mode=0o700)
    if DATABASE_USER:
        shutil.chown(new, DATABASE_USER, DATABASE_USER)
    # Reject all logins until there is a password: initdb reads one only from a file, and its user may not read ours.
    account = ("--username=nightjar", "--auth=reject", "--encoding=UTF8", "--locale=C.UTF-8")
    _database_step("initdb", *account, "-D", str(new))
    sql = f"ALTER ROLE nightjar PASSWORD '{password}';\n\nCREATE DATABASE nightjar;\n\n"
    _database_step("postgres", "--single", "-j", "-D", str(new), "postgres", stdin=sql)
    (new / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
    new.rename(data)


def _database_step(program: str, *arguments: str, stdin: str = "") -> None:
    done = subprocess.run(
        [str(postgres_program(program)), *arguments],
        input=stdin,
        user=DATABASE_USER,
        group=DATABASE_USER,
        extra_groups=[] if DATABASE_USER else None,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())[-300:]
        raise StackBroken(
            f"{program} could not create the stack's database ({reason}): fix the cause, then run `make stack` again"
        )
