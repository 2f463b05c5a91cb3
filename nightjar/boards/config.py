"""Which boards there are: every ssh alias is a board; boards.toml adds what ssh does not know (docs/boards.md).

BOARD_IP, BOARD_USER and BOARD_SSH_KEY define one more board, `env`. No password and no key is stored.
"""

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from nightjar.errors import BadOptions, BoardMissing

RESERVED = ("local", "simulator", "stand-in")  # not allowed as ssh aliases
ALIAS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:-]{0,200}")  # a leading - would be an option of ssh


def _check_path(path: str) -> str:
    if not path or path.startswith("-") or not path.isprintable():
        raise ValueError("not a path")
    return path


def _check_absolute(path: str) -> str:
    if not path.startswith(("/", "~/")) or ".." in path.split("/") or not path.strip("~/"):
        raise ValueError("must be an absolute path without ..")
    return path


PathText = Annotated[str, AfterValidator(_check_path)]
BoardPath = Annotated[PathText, AfterValidator(_check_absolute)]


class ProgramEntry(BaseModel, frozen=True, extra="forbid", strict=True):
    """A board's own executable, as boards.toml declares it."""

    command: list[str] = Field(min_length=1, description="argument list with {clip}, {language} and {binary}")
    cwd: str = Field("", pattern=r"^(/|~/|$)", description="working folder; default: an empty folder")
    dumps: str = Field("", description="the files that it dumps, a glob relative to cwd")
    timeout_s: float | None = Field(None, gt=0, description="time limit of one clip in seconds")


class BoardEntry(BaseModel, frozen=True, extra="forbid", strict=True):
    """The entry of one board in boards.toml."""

    target: str | None = Field(None, description="the only target that it runs")
    scratch: BoardPath = Field("~/.cache/nightjar", description="folder on the board, absolute or ~/…")
    python: PathText = Field("python3", description="the board's Python, a name or an absolute path")
    cache_gib: float = Field(8, gt=0, description="size of the file cache on the board at most")
    spool_gib: float = Field(1, gt=0, description="harvested data that may wait there before a harvest pauses")
    lock: BoardPath = Field("/tmp/nightjar.lock", description="lock file on the board: one run at a time")
    ssh_config: PathText | None = Field(None, description="ssh config file instead of ~/.ssh/config")
    service: str | None = Field(None, description="HOST:PORT of its `nightjar board serve`; default: ssh")
    service_ca: PathText | None = Field(None, description="PEM file of the service's certificate or authority: TLS")
    service_cert: PathText | None = Field(None, description="PEM file of the client certificate; service_key: its key")
    service_key: PathText | None = None
    service_token: PathText | None = Field(None, description="file of the service's token")
    adb: str | None = Field(None, pattern=r"^[A-Za-z0-9][\w.:-]{0,100}$", description="adb serial, instead of ssh")
    notes: str = ""
    program: ProgramEntry | None = Field(None, description="its own executable, run clip by clip")


class BoardAddress(NamedTuple):
    """How to reach a board: its alias, its entry in boards.toml, and the arguments of ssh."""

    alias: str
    entry: BoardEntry
    ssh: tuple[str, ...]  # options, then the destination


class SshSettings(NamedTuple):
    """The settings that ssh resolves for an alias (`ssh -G`)."""

    host: str
    port: int
    user: str
    keys: tuple[str, ...]
    known_hosts: tuple[str, ...]
    proxy: str  # a command, empty for none


def find_board(alias: str) -> BoardAddress:
    """Find a board by its alias; raises BoardMissing for an invalid alias, BadOptions for an invalid boards.toml."""
    if alias in RESERVED or not ALIAS.fullmatch(alias):
        raise BoardMissing(
            f"{alias!r} is not a valid board name: give an alias of ~/.ssh/config, of letters, digits and . _ - @ :"
        )
    entry = read_boards().get(alias, BoardEntry())
    if alias == "env":
        return BoardAddress(alias, entry, _from_environment())
    if not entry.ssh_config:
        return BoardAddress(alias, entry, (alias,))
    config = relative_to_boards_file(entry.ssh_config)
    if not config.is_file():
        raise BadOptions(f"{boards_file()} names an ssh_config that does not exist: {config}; correct the path")
    return BoardAddress(alias, entry, ("-F", str(config.resolve()), alias))


def boards_file() -> Path:
    """Return the path of boards.toml, whether it exists or not."""
    return Path(os.environ.get("NIGHTJAR_BOARDS") or "boards.toml")


def read_boards() -> Mapping[str, BoardEntry]:
    """Read boards.toml, empty where there is none; raises BadOptions in one line for any mistake in it."""
    path = boards_file()
    if not path.exists() and "NIGHTJAR_BOARDS" not in os.environ:
        return {}
    try:
        if not path.is_file() or path.stat().st_size > 1 << 20:
            raise ValueError("not a file of at most 1 MiB")
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadOptions(f"cannot read the boards in {path} ({reason}): see docs/boards.md for its format") from error
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
                f"{path}, board {alias}: {field[:100]!r}: {first['msg']}; allowed: {', '.join(BoardEntry.model_fields)}"
            ) from error
    return boards


def relative_to_boards_file(path: str) -> Path:
    """Return the path of a file that boards.toml names: relative to boards.toml, unless absolute."""
    return boards_file().parent / Path(path).expanduser()


def _from_environment() -> tuple[str, ...]:
    host, user, key = (os.environ.get(f"BOARD_{name}", "") for name in ("IP", "USER", "SSH_KEY"))
    if not host:
        raise BoardMissing("board env needs BOARD_IP, and takes BOARD_USER and BOARD_SSH_KEY: set BOARD_IP at least")
    if not ALIAS.fullmatch(host) or (user and not ALIAS.fullmatch(user)):
        raise BadOptions("BOARD_IP or BOARD_USER is not a name or address: give letters, digits and . _ - @ :")
    if key and not Path(key).expanduser().is_file():
        raise BadOptions(f"BOARD_SSH_KEY is not a file: {key}; give the path of the private key")
    options = (["-l", user] if user else []) + (["-i", key, "-o", "IdentitiesOnly=yes"] if key else [])
    return (*options, host)


def ssh_settings(address: BoardAddress) -> SshSettings:
    """Resolve an alias as ssh does, with Include and Match; raises BoardMissing when ssh fails."""
    *options, destination = address.ssh
    command = ["ssh", "-G", *options, "--", destination]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BoardMissing(f"cannot run ssh ({error}): install it with `apt install openssh-client`") from error
    if done.returncode:
        reason = " ".join(done.stderr.split())[:200]
        raise BoardMissing(f"ssh rejects board {address.alias!r} ({reason}): correct ~/.ssh/config or boards.toml")
    pairs = [(name, value) for name, _, value in (line.partition(" ") for line in done.stdout.splitlines())]
    last = dict(pairs)
    proxy = last.get("proxycommand", "")
    if (jump := last.get("proxyjump", "none")) != "none":
        first, *hops = reversed(jump.split(","))  # the last hop reaches the board through those before it
        config = options[: options.index("-F") + 2] if "-F" in options else []
        way = ["-J", ",".join(reversed(hops))] if hops else []
        proxy = shlex.join(["ssh", *config, *STRICT_OPTIONS, *way, "-W", "%h:%p", "--", first])
    placeholders = {"%h": last["hostname"], "%p": last["port"], "%r": last["user"], "%n": destination, "%%": "%"}
    keys = [Path(value).expanduser() for name, value in pairs if name == "identityfile"]
    known_hosts = f"{last.get('userknownhostsfile', '')} {last.get('globalknownhostsfile', '')}".split()
    return SshSettings(
        host=last["hostname"],
        port=int(last["port"]),
        user=last["user"],
        keys=tuple(str(key) for key in keys if key.is_file()),
        known_hosts=tuple(str(Path(file).expanduser()) for file in known_hosts if file != "none"),
        proxy="" if proxy == "none" else re.sub("%[hprn%]", lambda found: placeholders[found[0]], proxy),
    )


# No prompt, no unknown host key is accepted, and none is written.
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
