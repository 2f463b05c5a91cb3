"""Files to and from a board: resumed in the middle, checked by sha256 on both sides, placed by rename."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nightjar.boards.agent_link import ANSWER_S, AgentLink
from nightjar.errors import SessionFailed
from nightjar.files import digest_file, storage_errors

CHUNK = 1 << 19  # bytes
AHEAD = 32  # files sent before the answer to the first is awaited
LIMIT_BYTES = 1 << 34  # of one file that a board gives


Answer = TypeVar("Answer", bound=BaseModel)


class _Offered(BaseModel, strict=True):
    have: bool
    offset: int = 0
    prefix: str = ""


class _Given(BaseModel, strict=True):
    size: int
    offset: int


def put_files(link: AgentLink, pairs: Sequence[tuple[Path, str]]) -> int:
    """Send files (local path, path on the board) that the board does not have; return how many bytes went."""
    entries = [{"path": remote, "sha256": digest_file(local), "size": local.stat().st_size} for local, remote in pairs]
    if not entries:
        return 0
    link.say({"do": "offer", "files": entries})
    said = link.answer().get("files")
    if not isinstance(said, list) or len(said) != len(entries):
        raise _nonsense(link)
    moved, awaited = 0, 0
    sent: set[Any] = set()
    for (local, _), entry, state in zip(pairs, entries, said, strict=True):
        offered = _read(link, _Offered, state)
        if offered.have:
            continue
        if entry["sha256"] in sent:  # the same content twice: the first one is there when this is asked for
            while awaited:
                link.answer()
                awaited -= 1
            link.say({"do": "offer", "files": [entry]})
            link.answer()
            continue
        sent.add(entry["sha256"])
        if awaited == AHEAD:
            link.answer()
            awaited -= 1
        moved += _send(link, local, entry, offered)
        awaited += 1
    for _ in range(awaited):
        link.answer()
    return moved


def _send(link: AgentLink, local: Path, entry: dict[str, Any], offered: _Offered) -> int:
    with local.open("rb") as file:
        size = int(entry["size"])
        offset = offered.offset if 0 < offered.offset <= size else 0
        if offset and _hashed(file, offset).hexdigest() != offered.prefix:
            offset = 0
        file.seek(offset)
        link.say({"do": "take", **entry, "offset": offset})
        left = size - offset
        while left and (data := file.read(min(CHUNK, left))):
            link.send(b"D", data)
            left -= len(data)
        link.send(b"D")
    return size - offset - left


def _hashed(file: Any, count: int) -> Any:
    """Hash the next `count` bytes of a file, or those that there are."""
    hashed = hashlib.sha256()
    while count and (data := file.read(min(CHUNK, count))):
        hashed.update(data)
        count -= len(data)
    return hashed


def get_files(link: AgentLink, pairs: Sequence[tuple[str, Path]], limit_bytes: int = LIMIT_BYTES) -> int:
    """Fetch files (path on the board, local path), none longer than the limit; return how many bytes came."""
    moved = 0
    for remote, local in pairs:
        with storage_errors():
            moved += _fetch(link, remote, local, limit_bytes)
    return moved


def _fetch(link: AgentLink, remote: str, local: Path, limit_bytes: int) -> int:
    local.parent.mkdir(parents=True, exist_ok=True)
    part = local.with_name(f"{local.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    prefix = digest_file(part) if have else hashlib.sha256().hexdigest()
    link.say({"do": "give", "path": remote, "offset": have, "prefix": prefix})
    given = _read(link, _Given, link.answer())
    if not 0 <= given.offset <= given.size or given.offset not in (0, have) or given.size > limit_bytes:
        raise SessionFailed(
            f"board {link.alias} gives a file of {given.size} bytes where {limit_bytes} are the most; "
            "look at what is there"
        )
    left = given.size - given.offset
    with part.open("r+b" if have else "wb") as file:
        hashed = _hashed(file, given.offset) if have else hashlib.sha256()
        file.truncate(given.offset)
        while left:
            frame = link.receive(ANSWER_S)
            if frame is None or frame[0] != b"D" or not 0 < len(frame[1]) <= left:
                raise _nonsense(link)
            hashed.update(frame[1])
            file.write(frame[1])
            left -= len(frame[1])
    if hashed.hexdigest() != link.answer().get("sha256"):
        part.unlink()
        raise SessionFailed(f"{local.name} came damaged from board {link.alias}; run the same command again")
    part.rename(local)
    return given.size - given.offset


def _read(link: AgentLink, kind: type[Answer], said: Any) -> Answer:
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        raise _nonsense(link) from error


def _nonsense(link: AgentLink) -> SessionFailed:
    return SessionFailed(f"board {link.alias} answered what no agent of ours says; look at what runs there as Python")
