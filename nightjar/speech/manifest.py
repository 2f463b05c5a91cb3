"""Speech lists: NeMo manifests, LibriSpeech trees and plain folders of audio with text beside it."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from nightjar.errors import BadAudio, BadManifest, SpeakersOverlap
from nightjar.files import digest_file
from nightjar.speech.audio import SUFFIXES, duration_s, load_audio
from nightjar.store.file_memo import FileMemo

KINDS = "a .jsonl manifest, a LibriSpeech tree, or a folder with a .txt beside each audio file"
_durations = FileMemo("durations", duration_s)
LINE = '{"audio_filepath": "a.wav", "text": "what is said"}'


class Clip(BaseModel, frozen=True):
    """One utterance: its audio file, reference text and speaker."""

    id: str
    audio: Path
    text: str
    duration_s: float
    speaker: str | None


class _Line(BaseModel, strict=True):
    """One line of a NeMo manifest; its "duration" is ignored."""

    audio_filepath: str = Field(min_length=1)
    text: str
    speaker: str | int | None = None
    id: str | int | None = None
    offset: float = 0.0


class _Row(NamedTuple):
    """One clip as a speech list describes it, before its audio is checked."""

    where: str
    audio: str
    text: str
    speaker: str | None
    id: str


def load_speech(path: Path, transcribed: bool = True) -> list[Clip]:
    """List the clips of a manifest, a LibriSpeech tree or a plain folder, sorted by id.

    With `transcribed=False` a folder needs no text beside its audio, and a single audio file is a list too.
    Raises BadManifest or BadAudio with the file and line at fault; no clip is skipped silently.
    """
    if path.is_dir():
        transcripts = sorted(path.rglob("*.trans.txt"))
        rows = _librispeech(path, transcripts) if transcripts else _folder(path, transcribed)
    elif path.is_file() and path.suffix.lower() in (".jsonl", ".json"):
        rows = _manifest(path)
    elif path.is_file() and not transcribed:
        rows = [_Row(str(path), path.name, "", None, file_safe_id(path.stem))]
    else:
        what = "not a speech list;" if path.is_file() else "no such file or folder; check the path, or"
        raise BadManifest(f"{path}: {what} give {KINDS}")
    root = path.resolve() if path.is_dir() else path.resolve().parent  # the folder of a linked list's audio
    seen: dict[str, str] = {}
    clips = []
    for row in rows:
        if row.id in seen:
            raise BadManifest(
                f"{row.where}: the id {row.id!r} is the same as in {seen[row.id]}; "
                'ids must be unique: rename one, or give each line an "id"'
            )
        seen[row.id] = row.where
        clips.append(_clip(root, row))
    _durations.save()
    return sorted(clips, key=lambda clip: clip.id)


def speech_digest(clips: Sequence[Clip]) -> str:
    """Hash ids, texts, speakers and audio bytes; the folder does not matter."""
    digest = hashlib.sha256()
    for clip in sorted(clips, key=lambda clip: clip.id):
        row = [clip.id, clip.text, clip.speaker, _digests.get(clip.audio)]
        digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    _digests.save()
    return digest.hexdigest()


def check_disjoint(calibration: Sequence[Clip], evaluation: Sequence[Clip]) -> None:
    """Raise SpeakersOverlap if the two lists share a speaker or an utterance.

    An utterance is shared when the audio bytes are equal, or when id, length and samples are equal: the same clip in
    another container. An equal id is not enough: many lists count from clip_0001.
    """
    speakers = {c.speaker for c in calibration} & {c.speaker for c in evaluation} - {None}
    by_bytes = {_digests.get(clip.audio): clip for clip in calibration}
    by_id = {clip.id: clip for clip in calibration}
    utterances = []
    for clip in evaluation:
        twin = by_bytes.get(_digests.get(clip.audio))
        if twin is None and (named := by_id.get(clip.id)) and _same_samples(named, clip):
            twin = named
        if twin is not None:
            utterances.append(clip.id if twin.id == clip.id else f"{clip.id} (there {twin.id})")
    for kind, shared in (("speaker", sorted(map(str, speakers))), ("utterance", utterances)):
        if shared:
            first = ", ".join(shared[:5]) + (" …" if len(shared) > 5 else "")
            raise SpeakersOverlap(
                f"calibration and evaluation share {len(shared)} {kind}(s): {first}; "
                "move them to one of the two sets: a score on calibrated voices is too good"
            )


def ids_in_line_order(path: Path) -> list[str]:
    """List a manifest's clip ids in the order of its lines; empty for trees and folders, which have no order."""
    return [row.id for row in _manifest(path)] if path.is_file() else []


def shuffled(clips: Sequence[Clip], seed: int) -> list[Clip]:
    """Return the clips in an order that depends only on the seed and their ids."""
    return sorted(clips, key=lambda clip: rank(seed, clip.id))


def rank(seed: int, name: str) -> str:
    """Return the place of a name, such as a clip's id, in an order that the seed decides."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def split_by_window(clips: Sequence[Clip], window_s: float) -> tuple[list[Clip], list[Clip]]:
    """Split the clips into those of at most `window_s` seconds and those that must be skipped."""
    fitting = [clip for clip in clips if clip.duration_s <= window_s + 1e-6]
    return fitting, [clip for clip in clips if clip.duration_s > window_s + 1e-6]


def _manifest(path: Path) -> list[_Row]:
    rows = []
    # split("\n"), not splitlines(): a text may hold U+2028, which JSON need not escape
    for number, line in enumerate(_read(path).split("\n"), 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            entry = _Line.model_validate_json(line)
        except ValidationError as exc:
            first = exc.errors()[0]
            key = "".join(f'"{part}": ' for part in first["loc"][:1])
            raise BadManifest(f'{where}: {key}{first["msg"]}; write one {LINE} per line, text "" for silence') from exc
        if entry.offset:
            raise BadManifest(
                f'{where}: "offset" selects a piece of {entry.audio_filepath}; only whole files '
                "are read: cut it out into a file"
            )
        stem = Path(entry.audio_filepath).with_suffix("").as_posix()
        name = stem if entry.id is None else str(entry.id)
        speaker = None if entry.speaker is None else str(entry.speaker)
        rows.append(_Row(where, entry.audio_filepath, entry.text, speaker, file_safe_id(name)))
    if not rows:
        raise BadManifest(f"{path}: the manifest is empty; write one {LINE} per line")
    return rows


def _librispeech(root: Path, transcripts: Sequence[Path]) -> list[_Row]:
    rows = []
    unlisted = {audio.with_suffix(""): audio for audio in _audio_below(root)}
    for transcript in transcripts:
        for number, line in enumerate(_read(transcript).split("\n"), 1):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            where = f"{transcript}:{number}"
            if not text:
                raise BadManifest(f"{where}: {name} has no text; write 'ID TEXT'")
            suffix = unlisted.pop(transcript.parent / name, Path("missing.flac")).suffix
            audio = transcript.parent.relative_to(root) / f"{name}{suffix}"
            rows.append(_Row(where, audio.as_posix(), text, name.split("-")[0], file_safe_id(name)))
    for audio in unlisted.values():
        raise BadManifest(f"{audio}: in no .trans.txt beside it; add '{audio.stem} TEXT'")
    if not rows:
        raise BadManifest(f"{root}: its .trans.txt files are empty; write 'ID TEXT' lines")
    return rows


def _folder(root: Path, transcribed: bool) -> list[_Row]:
    rows = []
    for audio in _audio_below(root):
        relative = audio.relative_to(root)
        text = audio.with_suffix(".txt")
        if transcribed and not text.is_file():
            manifests = ", ".join(str(path) for path in sorted(root.glob("*.jsonl")))
            advice = f"or give a manifest: {manifests}" if manifests else "empty for silence"
            raise BadManifest(f"{audio}: no {text.name} with its reference text; write it, {advice}")
        speaker = relative.parts[0] if len(relative.parts) > 1 else None
        spoken = " ".join(_read(text).split()) if text.is_file() else ""
        name = file_safe_id(relative.with_suffix("").as_posix())
        rows.append(_Row(str(audio), relative.as_posix(), spoken, speaker, name))
    if not rows:
        raise BadManifest(f"{root}: no {', '.join(SUFFIXES)} file in it; give {KINDS}")
    return rows


def _audio_below(root: Path) -> list[Path]:
    """List audio files in order; a dangling link is listed too, so that it is refused later and not skipped."""
    found = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def _clip(root: Path, row: _Row) -> Clip:
    try:
        audio = (root / row.audio).resolve()
    except (OSError, RuntimeError, ValueError) as exc:  # a symlink loop, a NUL, a name too long
        raise BadManifest(
            f"{row.where}: {row.audio!r} is not a path ({exc}); give a path inside the list's folder"
        ) from exc
    if not audio.is_relative_to(root):
        raise BadManifest(
            f"{row.where}: {row.audio} leads out of {root}; audio must lie in the list's own "
            "folder: move it there, or move the list to a folder above both"
        )
    try:
        length_s = _durations.get(audio)
    except BadAudio as exc:
        raise BadAudio(f"{row.where}: {exc}" if row.where != str(audio) else str(exc)) from exc
    return Clip(id=row.id, audio=audio, text=row.text, duration_s=length_s, speaker=row.speaker)


def file_safe_id(name: str) -> str:
    """Turn a name into an id that is a safe file name on any board: `[A-Za-z0-9._-]`, 100 characters at most.

    A name that loses more than its slashes gets a hash, or two Chinese names would become equal.
    """
    flat = name.replace("/", "_")
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", flat).lstrip(".-")[:100]
    if safe == flat and safe:
        return safe
    return f"{safe[:80] or 'clip'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as exc:
        raise BadManifest(f"{path}: cannot be read ({exc.strerror}); check the path") from exc
    except UnicodeDecodeError as exc:
        raise BadManifest(f"{path}: not UTF-8 (byte {exc.start}); save it as UTF-8") from exc


def _sha256(path: Path) -> str:
    try:
        return digest_file(path)
    except OSError as exc:
        raise BadAudio(f"{path}: cannot be read ({exc.strerror}); check the path") from exc


_digests = FileMemo("digests", _sha256)


def _same_samples(one: Clip, other: Clip) -> bool:
    if abs(one.duration_s - other.duration_s) > 0.001:
        return False
    return bool(np.array_equal(load_audio(one.audio), load_audio(other.audio)))
