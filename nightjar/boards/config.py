"""Which boards there are: an ssh alias is a board; boards.toml adds what ssh does not know.

    [rk1]                              # an alias of ~/.ssh/config
    target = "rknn"                    # all of these may be left out
    scratch = "/data/nightjar"
    python = "/opt/venv/bin/python3"
    cache_gib = 8
    spool_gib = 1
    lock = "/tmp/nightjar.lock"
    ssh_config = "lab.config"
    service = "localhost:50051"        # its board service (nightjar/service/main.py), in place of ssh for long harvests
    service_ca = "ca.pem"              # beyond localhost; service_cert and service_key, or service_token, beside it
    notes = "on the shelf, RK3588, 8 GiB"
    adb = "0123456789ABCDEF"           # serial of an Android device, in place of ssh (nightjar/device/adb.py)
    [rk1.program]                      # an executable of its own, for --program declared
    command = ["./rknn_whisper_demo", "encoder.rknn", "decoder.rknn", "{language}", "{clip}"]
    cwd = "/opt/rknn_whisper_demo"

BOARD_IP, BOARD_USER and BOARD_SSH_KEY make one more, called `env`. No password and no key is ever stored.
"""

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nightjar.errors import BadOptions, BoardMissing

RESERVED = ("local", "simulator", "stand-in")  # no ssh alias may be called so
ALIAS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:-]{0,200}")  # a leading - would be an option of ssh
FILE_BYTES = 1 << 20


class ProgramEntry(BaseModel):
    """What boards.toml says of a board's own program."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    command: list[str] = Field(min_length=1, description="argument list with {clip}, {language} and {binary}")
    cwd: str = Field("", pattern=r"^(/|~/|$)", description="where it is started; an empty folder otherwise")
    dumps: str = Field("", description="the files that it dumps, a glob relative to cwd")
    timeout_s: float | None = Field(None, gt=0, description="seconds that one clip may take")


class BoardEntry(BaseModel):
    """What boards.toml says of one board."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    target: str | None = Field(None, description="the only target it takes")
    scratch: str = Field("~/.cache/nightjar", description="folder on the board, absolute or ~/…")
    python: str = Field("python3", description="the board's Python, a name or an absolute path")
    cache_gib: float = Field(8, gt=0, description="what is kept on the board between runs, at most")
    spool_gib: float = Field(1, gt=0, description="what may wait there to be fetched before a harvest pauses")
    lock: str = Field("/tmp/nightjar.lock", description="file on the board that its only user holds locked")
    ssh_config: str | None = Field(None, description="ssh config file in place of ~/.ssh/config")
    service: str | None = Field(None, description="HOST:PORT of its `nightjar board serve`; ssh without")
    service_ca: str | None = Field(None, description="PEM file of the service's certificate or authority: TLS")
    service_cert: str | None = Field(None, description="PEM file of our own certificate, and service_key its key")
    service_key: str | None = None
    service_token: str | None = Field(None, description="file of the service's token")
    adb: str | None = Field(None, pattern=r"^[A-Za-z0-9][\w.:-]{0,100}$", description="adb serial, in place of ssh")
    notes: str = ""
    program: ProgramEntry | None = Field(None, description="its own executable, called clip by clip")

    @field_validator(
        *("scratch", "lock", "python", "ssh_config", "service_ca", "service_cert", "service_key", "service_token")
    )
    @classmethod
    def _is_a_path(cls, path: str | None) -> str | None:
        if path is not None and (not path or path.startswith("-") or not path.isprintable()):
            raise ValueError("no path")
        return path

    @field_validator("scratch", "lock")
    @classmethod
    def _is_absolute(cls, path: str) -> str:
        if not path.startswith(("/", "~/")) or ".." in path.split("/") or not path.strip("~/"):
            raise ValueError("an absolute path without .. is wanted")
        return path


class BoardAddress(NamedTuple):
    """How to reach a board: its name, what boards.toml says of it, and the arguments of ssh that lead there."""

    alias: str
    entry: BoardEntry
    ssh: tuple[str, ...]  # options, then the destination


class SshSettings(NamedTuple):
    """What ssh makes of an alias (`ssh -G`)."""

    host: str
    port: int
    user: str
    keys: tuple[str, ...]
    known_hosts: tuple[str, ...]
    proxy: str  # a command, empty for none


def find_board(alias: str) -> BoardAddress:
    """Find a board by its alias; raises BoardMissing for a name that is none, BadOptions for a wrong boards.toml."""
    if alias in RESERVED or not ALIAS.fullmatch(alias):
        raise BoardMissing(
            f"no board can be called {alias!r}: give an alias of ~/.ssh/config, letters, digits and . _ - @ :"
        )
    entry = read_boards().get(alias, BoardEntry())
    if alias == "env":
        return BoardAddress(alias, entry, _from_environment())
    config = ("-F", str(_config_file(entry.ssh_config))) if entry.ssh_config else ()
    return BoardAddress(alias, entry, (*config, alias))


def boards_file() -> Path:
    """Return where boards.toml is, or would be."""
    return Path(os.environ.get("NIGHTJAR_BOARDS") or "boards.toml")


def read_boards() -> Mapping[str, BoardEntry]:
    """Read boards.toml, empty where there is none; raises BadOptions in one line for anything wrong in it."""
    path = boards_file()
    if not path.exists() and "NIGHTJAR_BOARDS" not in os.environ:
        return {}
    try:
        if not path.is_file() or path.stat().st_size > FILE_BYTES:
            raise ValueError("no file of at most 1 MiB")
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadOptions(f"cannot read the boards in {path} ({reason}): see docs/boards.md for how it looks") from error
    boards = {}
    for alias, table in tables.items():
        if alias in RESERVED or not ALIAS.fullmatch(alias):
            raise BadOptions(
                f"{path} has a board called {alias[:100]!r}: use an ssh alias, but not {', '.join(RESERVED)}"
            )
        try:
            boards[alias] = BoardEntry.model_validate(table)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the table"
            raise BadOptions(
                f"{path}, board {alias}: {field[:100]!r}: {first['msg']}; "
                f"a board has {', '.join(BoardEntry.model_fields)}"
            ) from error
    return boards


def beside(path: str) -> Path:
    """Return where a file lies that boards.toml names: beside it, unless absolute."""
    return boards_file().parent / Path(path).expanduser()


def _config_file(path: str) -> Path:
    found = beside(path)
    if not found.is_file():
        raise BadOptions(f"{boards_file()} names an ssh_config that is not there: {found}; correct the path")
    return found.resolve()


def _from_environment() -> tuple[str, ...]:
    host, user, key = (os.environ.get(f"BOARD_{name}", "") for name in ("IP", "USER", "SSH_KEY"))
    if not host:
        raise BoardMissing("board env is what BOARD_IP, BOARD_USER and BOARD_SSH_KEY say: set BOARD_IP at least")
    if not ALIAS.fullmatch(host) or (user and not ALIAS.fullmatch(user)):
        raise BadOptions("BOARD_IP or BOARD_USER is no name or address: give letters, digits and . _ - @ :")
    if key and not Path(key).expanduser().is_file():
        raise BadOptions(f"BOARD_SSH_KEY names no file: {key}; give the path of the private key")
    options = (["-l", user] if user else []) + (["-i", key, "-o", "IdentitiesOnly=yes"] if key else [])
    return (*options, host)


def ssh_settings(reach: BoardAddress) -> SshSettings:
    """Ask ssh what it makes of an alias: Include, Match and all; raises BoardMissing where ssh cannot say."""
    *options, destination = reach.ssh
    try:
        done = subprocess.run(
            ["ssh", "-G", *options, "--", destination],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BoardMissing(
            f"cannot run ssh ({error}): install OpenSSH's client, `apt install openssh-client`"
        ) from error
    if done.returncode:
        reason = " ".join(done.stderr.split())[:200]
        raise BoardMissing(f"ssh does not take board {reach.alias!r} ({reason}): mend ~/.ssh/config or boards.toml")
    said: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        said.setdefault(name, []).append(value)
    last = {name: values[-1] for name, values in said.items()}
    proxy = last.get("proxycommand", "")
    if (jump := last.get("proxyjump", "none")) != "none":
        first, *hops = reversed(jump.split(","))  # the last hop reaches the board, those before it are its own way
        config = options[: options.index("-F") + 2] if "-F" in options else []
        way = ["-J", ",".join(reversed(hops))] if hops else []
        proxy = shlex.join(["ssh", *config, *STRICT_OPTIONS, *way, "-W", "%h:%p", "--", first])
    files = " ".join([*said.get("userknownhostsfile", []), *said.get("globalknownhostsfile", [])]).split()
    return SshSettings(
        host=last["hostname"],
        port=int(last["port"]),
        user=last["user"],
        keys=tuple(key for key in map(str, map(_expanded, said.get("identityfile", []))) if Path(key).is_file()),
        known_hosts=tuple(str(_expanded(file)) for file in files if file != "none"),
        proxy="" if proxy == "none" else _filled(proxy, last, destination),
    )


# Nothing is asked for, nobody's key is taken on trust, and no key is written down.
STRICT_OPTIONS = tuple(
    word
    for option in (
        *("BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no", "ConnectTimeout=10", "LogLevel=ERROR"),
        *("ServerAliveInterval=15", "ServerAliveCountMax=3", "ControlMaster=no", "ControlPath=none"),
        "Ciphers=^aes128-gcm@openssh.com",  # in hardware on most boards, and twice as fast as the default
        *("ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "RequestTTY=no", "RemoteCommand=none"),
    )
    for word in ("-o", option)
)


def _filled(command: str, last: Mapping[str, str], destination: str) -> str:
    """Put host, port and user where a ProxyCommand wants them, as ssh does."""
    meant = {"%h": last["hostname"], "%p": last["port"], "%r": last["user"], "%n": destination, "%%": "%"}
    return re.sub("%[hprn%]", lambda found: meant[found[0]], command)


def _expanded(path: str) -> Path:
    return Path(path).expanduser()
