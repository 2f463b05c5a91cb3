"""Encoder outputs by the thousand, written shard by shard (docs/files.md, dataset).

A shard's record is written when all of it is on disk; until then a journal says which clips are. So a kill at any
moment costs the clips that were on their way, and the same harvest goes on; it makes anew what has been altered.
"""

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from nightjar.dataset.reader import INDEX, HarvestedClip, Index, ShardEntry, ShardFile, ShardRecord, record_file
from nightjar.errors import BadOptions
from nightjar.files import digest_file, storage_errors, write_atomic
from nightjar.locks import locked

log = logging.getLogger(__name__)


class Writer:
    """Write a dataset, or go on with one that was left off; whoever comes second waits.

    done: ids of the clips that are there, each verified. Raises BadOptions where the folder holds something else,
    StoreBroken where the disk is full.
    """

    def __init__(self, folder: Path, index: Index, ids: Sequence[str]) -> None:
        self.folder, self.ids, self.done = folder, list(ids), set[str]()
        self._index = index.signed(())
        self._sizes = self._index.sizes()
        self._place = {name: at // index.shard_clips for at, name in enumerate(self.ids)}
        self._open: dict[int, _OpenShard] = {}

    def __enter__(self) -> "Writer":
        with contextlib.ExitStack() as held, storage_errors():
            waiting = f"another harvest writes to {self.folder}; waiting"
            held.enter_context(locked(self.folder / ".lock", on_wait=lambda: log.warning(waiting)))
            self._go_on()
            self._lock = held.pop_all()
        return self

    def _go_on(self) -> None:
        """Read what is in the folder already."""
        if self._read_before() != self._index:
            write_atomic(self.folder / INDEX, self._index.model_dump_json(indent=1))
        for number in range(len(self._sizes)):
            shard = self._shard(number)
            self.done |= shard.kept.keys()
            shard.close()

    def _shard(self, number: int) -> "_OpenShard":
        start = number * self._index.shard_clips
        names = self.ids[start : start + self._sizes[number]]
        return _OpenShard(self.folder, number, names, self._index)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shard in self._open.values():
            shard.close()
        self._lock.close()

    def add(self, encoded: HarvestedClip) -> None:
        """Keep one clip; when this returns, no kill of ours loses it."""
        number = self._place[encoded.id]
        with storage_errors():
            if (shard := self._open.get(number)) is None:
                shard = self._open[number] = self._shard(number)
            shard.add(encoded)
            self.done.add(encoded.id)
            if len(shard.kept) == len(shard.names):
                self._open.pop(number).finish()

    def finish(self) -> Index:
        """Write the index of a dataset that has all its clips."""
        missing = [name for name in self.ids if name not in self.done]
        assert not missing, missing[:3]
        with storage_errors():
            shards = [digest_file(record_file(self.folder, number)) for number in range(len(self._sizes))]
            index = self._index.signed(shards)
            write_atomic(self.folder / INDEX, index.model_dump_json(indent=1))
        return index

    def _read_before(self) -> Index | None:
        path = self.folder / INDEX
        if not path.exists():
            foreign = sorted(path.name for path in self.folder.iterdir() if path.name != ".lock")
            if foreign:
                raise BadOptions(f"{self.folder} holds {foreign[0]} and no dataset of ours: give an empty --out")
            return None
        try:
            before = Index.model_validate_json(path.read_bytes())
        except (ValidationError, UnicodeDecodeError):
            log.warning("%s is damaged; written anew", path)
            return None
        ours, theirs = (each.model_dump(exclude={"shards", "sha256"}) for each in (self._index, before))
        if ours != theirs:
            flat = [{**each, **each["made_from"]} for each in (ours, theirs)]
            other = [name for name in flat[0] if name != "made_from" and flat[0][name] != flat[1].get(name)]
            raise BadOptions(
                f"{self.folder} holds a dataset of another {', '.join(other)}: give another --out, or delete it"
            )
        return before


class _OpenShard:
    """Hold one shard's files while clips come, in any order; on opening, verify what an earlier run left."""

    def __init__(self, folder: Path, number: int, names: Sequence[str], index: Index) -> None:
        self.names, self.kept = {name: slot for slot, name in enumerate(names)}, dict[str, ShardEntry]()
        self._folder, self._number = folder, number
        self._journal_path = folder / f"shard-{number:05d}.jsonl"
        self._journal: Any = None
        record = record_file(folder, number)
        self._of = index.sha256
        self._files = {
            tensor: ShardFile(folder, number, tensor, len(names), shape) for tensor, shape in index.tensors.items()
        }
        entries, whole = self._left()
        if not entries:
            record.unlink(missing_ok=True)
            return
        for file in self._files.values():
            whole &= file.open(os.O_RDWR | os.O_CREAT)
        for entry in entries:
            if self._good(entry):
                self.kept[entry.id] = entry
            else:
                log.warning("%s: clip %s was altered; made anew", record.with_suffix(""), entry.id)
        if whole and list(self.kept) == list(names):
            return
        self._write_journal()
        record.unlink(missing_ok=True)
        if len(self.kept) == len(names):
            self.finish()  # killed just before

    def _left(self) -> tuple[list[ShardEntry], bool]:
        """Return what record or journal says is there, and whether it was a record."""
        record = record_file(self._folder, self._number)
        try:
            if record.exists():
                found = ShardRecord.model_validate_json(record.read_bytes())
                return (found.clips, True) if found.dataset == self._of else ([], False)
            data = self._journal_path.read_bytes() if self._journal_path.exists() else b""
            head, *lines = data[: data.rfind(b"\n") + 1].splitlines() or [b""]
            if head.decode("ascii", "replace") != self._of:  # the index was damaged, and this is of another dataset
                return [], False
            return [ShardEntry.model_validate_json(line) for line in lines], False
        except ValidationError:
            log.warning("shard %d of %s has a damaged record; made anew", self._number, self._folder)
            return [], False

    def _good(self, entry: ShardEntry) -> bool:
        slot = self.names.get(entry.id)
        return slot is not None and all(
            file.sha256(slot) == entry.tensors.get(tensor) for tensor, file in self._files.items()
        )

    def add(self, encoded: HarvestedClip) -> None:
        """Write a clip's tensors, then its line of the journal."""
        if self._journal is None:
            for file in self._files.values():
                file.open(os.O_RDWR | os.O_CREAT)
            self._write_journal()
            self._journal = self._journal_path.open("ab", buffering=0)
        slot = self.names[encoded.id]
        sums = {tensor: file.write(slot, encoded.tensors[tensor]) for tensor, file in self._files.items()}
        entry = ShardEntry(id=encoded.id, audio_s=encoded.audio_s, wave=encoded.wave, tensors=sums)
        self._journal.write(f"{entry.model_dump_json()}\n".encode())
        self.kept[encoded.id] = entry

    def _write_journal(self) -> None:
        # Anew, without a half-written line and lines of clips that were altered.
        lines = [self._of, *(entry.model_dump_json() for entry in self.kept.values())]
        write_atomic(self._journal_path, "".join(f"{line}\n" for line in lines))

    def finish(self) -> None:
        """Write the record, which makes the shard one."""
        for file in self._files.values():
            file.sync()
        ordered = ShardRecord(dataset=self._of, clips=[self.kept[name] for name in self.names])
        write_atomic(record_file(self._folder, self._number), ordered.model_dump_json())
        self.close()
        self._journal_path.unlink(missing_ok=True)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._journal is not None:
            self._journal.close()
