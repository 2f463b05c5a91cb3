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
LIMIT_BYTES = 1 << 34  # of one file that a board sends

Answer = TypeVar("Answer", bound=BaseModel)


class _CacheState(BaseModel, strict=True):
    """How much of an offered file the board has: all, or the first `offset` bytes, whose sha256 is `prefix`."""

    have: bool
    offset: int = 0
    prefix: str = ""


class _FileHeader(BaseModel, strict=True):
    """The size of a file that a board sends, and the byte that it begins with."""

    size: int
    offset: int


def put_files(link: AgentLink, pairs: Sequence[tuple[Path, str]]) -> int:
    """Send files (local path, path on the board) that the board does not have; return the bytes sent."""
    entries = [{"path": remote, "sha256": digest_file(local), "size": local.stat().st_size} for local, remote in pairs]
    if not entries:
        return 0
    link.send_json({"do": "offer", "files": entries})
    states = link.wait_answer().get("files")
    if not isinstance(states, list) or len(states) != len(entries):
        raise _invalid_answer(link)
    sent_bytes, awaited = 0, 0
    sent, copies = set[Any](), []
    for pair, entry, state in zip(pairs, entries, states, strict=True):
        cached = _validate(link, _CacheState, state)
        if cached.have:
            continue
        if entry["sha256"] in sent:
            copies.append(pair)
            continue
        sent.add(entry["sha256"])
        if awaited == AHEAD:
            link.wait_answer()
            awaited -= 1
        sent_bytes += _send(link, pair[0], entry, cached)
        awaited += 1
    for _ in range(awaited):
        link.wait_answer()
    return sent_bytes + put_files(link, copies)  # the board has their content now


def _send(link: AgentLink, local: Path, entry: dict[str, Any], cached: _CacheState) -> int:
    with local.open("rb") as file:
        size = int(entry["size"])
        offset = cached.offset if 0 < cached.offset <= size else 0
        if offset and _hash(file, offset).hexdigest() != cached.prefix:
            offset = 0
        file.seek(offset)
        link.send_json({"do": "take", **entry, "offset": offset})
        left = size - offset
        while left and (data := file.read(min(CHUNK, left))):
            link.send_frame(b"D", data)
            left -= len(data)
        link.send_frame(b"D")
    return size - offset - left


def _hash(file: Any, count: int) -> Any:
    """Hash the next `count` bytes of a file, fewer at its end."""
    hashed = hashlib.sha256()
    while count and (data := file.read(min(CHUNK, count))):
        hashed.update(data)
        count -= len(data)
    return hashed


def get_files(link: AgentLink, pairs: Sequence[tuple[str, Path]], limit_bytes: int = LIMIT_BYTES) -> int:
    """Fetch files (path on the board, local path) of at most `limit_bytes` each; return the bytes received."""
    received_bytes = 0
    for remote, local in pairs:
        with storage_errors():
            received_bytes += _fetch(link, remote, local, limit_bytes)
    return received_bytes


def _fetch(link: AgentLink, remote: str, local: Path, limit_bytes: int) -> int:
    local.parent.mkdir(parents=True, exist_ok=True)
    part = local.with_name(f"{local.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    prefix = digest_file(part) if have else hashlib.sha256().hexdigest()
    link.send_json({"do": "give", "path": remote, "offset": have, "prefix": prefix})
    header = _validate(link, _FileHeader, link.wait_answer())
    if not 0 <= header.offset <= header.size or header.offset not in (0, have) or header.size > limit_bytes:
        raise SessionFailed(
            f"board {link.alias} sends a file of {header.size} bytes, at most {limit_bytes} are allowed; "
            "check what lies there"
        )
    left = header.size - header.offset
    with part.open("r+b" if have else "wb") as file:
        hashed = _hash(file, header.offset)
        file.truncate(header.offset)
        while left:
            frame = link.receive(ANSWER_S)
            if frame is None or frame[0] != b"D" or not 0 < len(frame[1]) <= left:
                raise _invalid_answer(link)
            hashed.update(frame[1])
            file.write(frame[1])
            left -= len(frame[1])
    if hashed.hexdigest() != link.wait_answer().get("sha256"):
        part.unlink()
        raise SessionFailed(f"{local.name} from board {link.alias} arrived damaged; run the same command again")
    part.rename(local)
    return header.size - header.offset


def _validate(link: AgentLink, kind: type[Answer], answer: Any) -> Answer:
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        raise _invalid_answer(link) from error


def _invalid_answer(link: AgentLink) -> SessionFailed:
    return SessionFailed(f"invalid answer about files from board {link.alias}; check what runs there as Python")
