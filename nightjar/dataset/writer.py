"""Encoder outputs of many clips, written shard by shard (docs/files.md, dataset).

The record of a shard is written when the whole shard is on disk; until then a journal lists the finished clips. So a
kill at any moment loses only the clips in progress; the same harvest continues, and recomputes altered clips.
"""

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nightjar.dataset.reader import INDEX, HarvestedClip, Index, ShardEntry, ShardFile, ShardRecord, shard_file
from nightjar.errors import BadOptions
from nightjar.files import digest_file, read_whole_lines, storage_errors, sync, write_atomic
from nightjar.locks import locked

log = logging.getLogger(__name__)


class DatasetWriter:
    """Write a dataset, or continue an unfinished one; a second writer waits.

    done: ids of the clips in the dataset, each verified. Raises BadOptions where the folder has other content,
    StoreBroken where the disk is full.
    """

    def __init__(self, folder: Path, index: Index, ids: Sequence[str]) -> None:
        self.folder, self.ids, self.done = folder, list(ids), set[str]()
        self._index = index.with_shards(())
        self._sizes = self._index.sizes()
        self._shard_of = {name: at // index.shard_clips for at, name in enumerate(self.ids)}
        self._open: dict[int, _OpenShard] = {}

    def __enter__(self) -> "DatasetWriter":
        with contextlib.ExitStack() as stack, storage_errors():
            waiting = f"another harvest writes to {self.folder}; waiting"
            stack.enter_context(locked(self.folder / ".lock", on_wait=lambda: log.warning(waiting)))
            if self._read_index() != self._index:
                write_atomic(self.folder / INDEX, self._index.model_dump_json(indent=1))
            for number in range(len(self._sizes)):
                shard = self._open_shard(number)
                self.done |= shard.entries.keys()
                shard.close()
            self._lock = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._open.values():
            shard.close()
        self._lock.close()

    def add(self, clip: HarvestedClip) -> None:
        """Write one clip; after this a kill of this process does not lose it."""
        number = self._shard_of[clip.id]
        with storage_errors():
            if (shard := self._open.get(number)) is None:
                shard = self._open[number] = self._open_shard(number)
            shard.add(clip)
            self.done.add(clip.id)
            if len(shard.entries) == len(shard.slots):
                self._open.pop(number).finish()

    def finish(self) -> Index:
        """Write the index of a dataset that has all its clips."""
        missing = [name for name in self.ids if name not in self.done]
        assert not missing, missing[:3]
        with storage_errors():
            shards = [digest_file(shard_file(self.folder, number, "json")) for number in range(len(self._sizes))]
            index = self._index.with_shards(shards)
            write_atomic(self.folder / INDEX, index.model_dump_json(indent=1))
        return index

    def _open_shard(self, number: int) -> "_OpenShard":
        start = number * self._index.shard_clips
        return _OpenShard(self.folder, number, self.ids[start : start + self._sizes[number]], self._index)

    def _read_index(self) -> Index | None:
        path = self.folder / INDEX
        if not path.exists():
            foreign = sorted(path.name for path in self.folder.iterdir() if path.name != ".lock")
            if foreign:
                raise BadOptions(f"{self.folder} has {foreign[0]} and no dataset: give an empty --out")
            return None
        try:
            before = Index.model_validate_json(path.read_bytes())
        except (ValidationError, UnicodeDecodeError):
            log.warning("%s is damaged and is written again", path)
            return None
        ours, theirs = (each.model_dump(exclude={"shards", "sha256"}) for each in (self._index, before))
        for described in (ours, theirs):
            described |= described.pop("made_from")
        if other := [name for name in ours | theirs if ours.get(name) != theirs.get(name)]:
            raise BadOptions(
                f"{self.folder} has a dataset of another {', '.join(other)}: give another --out, or delete it"
            )
        return before


class _OpenShard:
    """The files of one shard; clips arrive in any order. On opening, the clips of an earlier run are verified."""

    def __init__(self, folder: Path, number: int, names: Sequence[str], index: Index) -> None:
        self.slots, self.entries = {name: slot for slot, name in enumerate(names)}, dict[str, ShardEntry]()
        self._record = shard_file(folder, number, "json")
        self._journal_path = self._record.with_suffix(".jsonl")
        self._journal: Any = None
        self._dataset = index.sha256
        self._files = {
            tensor: ShardFile(folder, number, tensor, len(names), shape) for tensor, shape in index.tensors.items()
        }
        entries, complete = self._read_entries()
        if not entries:
            self._record.unlink(missing_ok=True)
            return
        for file in self._files.values():
            complete &= file.open(os.O_RDWR | os.O_CREAT)
        for entry in entries:
            slot, files = self.slots.get(entry.id), self._files.items()
            if slot is not None and entry.tensors == {tensor: file.sha256(slot) for tensor, file in files}:
                self.entries[entry.id] = entry
            else:
                log.warning("%s: clip %s was altered and is recomputed", self._record.with_suffix(""), entry.id)
        if complete and list(self.entries) == list(names):
            return
        self._write_journal()
        self._record.unlink(missing_ok=True)
        if len(self.entries) == len(names):
            self.finish()  # the earlier run was killed just before

    def _read_entries(self) -> tuple[list[ShardEntry], bool]:
        """Return the entries of the record or the journal, and whether there was a record."""
        try:
            if self._record.exists():
                found = ShardRecord.model_validate_json(self._record.read_bytes())
                return (found.clips, True) if found.dataset == self._dataset else ([], False)
            head, *lines = read_whole_lines(self._journal_path) or [b""]
            if head.decode("ascii", "replace") != self._dataset:  # the index was damaged; this is another dataset's
                return [], False
            return [ShardEntry.model_validate_json(line) for line in lines], False
        except ValidationError:
            log.warning("%s is damaged and is written again", self._record.with_suffix(""))
            return [], False

    def add(self, clip: HarvestedClip) -> None:
        """Write a clip's tensors, then its line in the journal."""
        if self._journal is None:
            for file in self._files.values():
                file.open(os.O_RDWR | os.O_CREAT)
            self._write_journal()
            self._journal = self._journal_path.open("ab", buffering=0)
        slot = self.slots[clip.id]
        sums = {tensor: file.write(slot, clip.tensors[tensor]) for tensor, file in self._files.items()}
        entry = ShardEntry(id=clip.id, audio_s=clip.audio_s, wave=clip.wave, tensors=sums)
        self._journal.write(f"{entry.model_dump_json()}\n".encode())
        self.entries[clip.id] = entry

    def _write_journal(self) -> None:
        # A new file, without the lines of altered clips.
        lines = [self._dataset, *(entry.model_dump_json() for entry in self.entries.values())]
        write_atomic(self._journal_path, "".join(f"{line}\n" for line in lines))

    def finish(self) -> None:
        """Write the record, which completes the shard."""
        for file in self._files.values():
            sync(file.path)
        record = ShardRecord(dataset=self._dataset, clips=[self.entries[name] for name in self.slots])
        write_atomic(self._record, record.model_dump_json())
        self.close()
        self._journal_path.unlink(missing_ok=True)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._journal is not None:
            self._journal.close()
