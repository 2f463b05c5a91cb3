"""Speech lists (manifest, LibriSpeech tree, plain folder) and audio of any rate as int16."""

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from nightjar.errors import BadAudio, BadManifest, SpeakersOverlap

SAMPLE_RATE = 16_000
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
# What libsndfile calls the containers whose truncation this module can see; it opens many more.
FORMATS = ("WAV", "WAVEX", "FLAC", "MP3", "OGG")
KINDS = "a .jsonl manifest, a LibriSpeech tree, or a folder with a .txt beside each audio file"
LINE = '{"audio_filepath": "a.wav", "text": "what is said"}'


class Clip(BaseModel, frozen=True):
    """Name one utterance: its audio file, what is said in it and by whom."""

    id: str
    audio: Path
    text: str
    duration_s: float
    speaker: str | None


class _Line(BaseModel, strict=True):
    """What one line of a NeMo manifest may say; a "duration" is not believed."""

    audio_filepath: str = Field(min_length=1)
    text: str
    speaker: str | int | None = None
    id: str | int | None = None
    offset: float = 0.0


class _Row(NamedTuple):
    """What a speech list says of one clip, before anything is checked against the disk."""

    where: str
    audio: str
    text: str
    speaker: str | None
    id: str


def load_speech(path: Path) -> list[Clip]:
    """List the clips of a manifest, a LibriSpeech tree or a plain folder, sorted by id.

    Raises BadManifest or BadAudio with the file and line at fault; no clip is left out silently.
    """
    path = Path(path)
    if path.is_dir():
        transcripts = sorted(path.rglob("*.trans.txt"))
        rows = _librispeech(path, transcripts) if transcripts else _folder(path)
    elif path.is_file() and path.suffix.lower() in (".jsonl", ".json"):
        rows = _manifest(path)
    elif path.is_file():
        raise BadManifest(f"{path}: not a speech list; give {KINDS}")
    else:
        raise BadManifest(f"{path}: no such file or folder; give {KINDS}")
    root = (path if path.is_dir() else path.parent).resolve()
    seen: dict[str, str] = {}
    clips = []
    for row in rows:
        if row.id in seen:
            raise BadManifest(
                f"{row.where}: the id {row.id!r} is already that of {seen[row.id]}; "
                'ids must be unique: rename one, or give each line an "id"'
            )
        seen[row.id] = row.where
        clips.append(_clip(root, row))
    return sorted(clips, key=lambda clip: clip.id)


def load_audio(path: Path) -> NDArray[np.int16]:
    """Read a wav, flac, mp3 or ogg file as `(n,) int16`, 16 kHz, mono; raise BadAudio otherwise.

    Channels are averaged and the rate changed in float32; 16 kHz 16-bit mono stays bit for bit.
    """
    path = Path(path)
    with _opened(path) as file:
        parts = [block.mean(axis=1, dtype=np.float32) for block in _blocks(path, file)]
        expected, rate, exact = file.frames, file.samplerate, file.format != "MP3"
    wave = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not wave.size:
        raise _no_sound(path)
    # Encoder delay and padding make an mp3's own count approximate; `_opened` checked its bytes.
    if exact and wave.size < expected:
        raise _truncated(path)
    if not np.isfinite(wave).all():
        raise BadAudio(f"{path}: samples that are NaN or infinite; write the file again")
    if rate != SAMPLE_RATE:
        import librosa  # takes seconds to import, and most speech is at 16 kHz already

        wave = librosa.resample(wave, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")
    return np.clip(np.rint(wave * 32768.0), -32768, 32767).astype(np.int16)


def speech_digest(clips: Sequence[Clip]) -> str:
    """Hash ids, texts, speakers and audio bytes: the same content in another folder is the same."""
    digest = hashlib.sha256()
    for clip in sorted(clips, key=lambda clip: clip.id):
        row = [clip.id, clip.text, clip.speaker, _sha256(clip.audio)]
        digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def check_disjoint(calibration: Sequence[Clip], evaluation: Sequence[Clip]) -> None:
    """Raise SpeakersOverlap if the two lists share a speaker or an utterance.

    An utterance is shared when the audio bytes are equal, or when id, length and samples are: the
    same clip in another container. An id alone is no proof: many lists count from clip_0001.
    """
    advice = "calibrate on other speech than is scored, or the score flatters the port"
    speakers = {c.speaker for c in calibration} & {c.speaker for c in evaluation} - {None}
    if speakers:
        raise SpeakersOverlap(
            f"calibration and evaluation share {len(speakers)} speaker(s): "
            f"{_first_five(sorted(map(str, speakers)))}; {advice}"
        )
    by_bytes = {_sha256(clip.audio): clip for clip in calibration}
    by_id = {clip.id: clip for clip in calibration}
    shared = []
    for clip in evaluation:
        twin = by_bytes.get(_sha256(clip.audio))
        if twin is None and (named := by_id.get(clip.id)) and _same_samples(named, clip):
            twin = named
        if twin is not None:
            shared.append(clip.id if twin.id == clip.id else f"{clip.id} (there {twin.id})")
    if shared:
        raise SpeakersOverlap(
            f"calibration and evaluation share {len(shared)} utterance(s): {_first_five(shared)}; {advice}"
        )


def split_by_window(clips: Sequence[Clip], window_s: float) -> tuple[list[Clip], list[Clip]]:
    """Part the clips into those that fit in `window_s` seconds and those that must be skipped."""
    kept = [clip for clip in clips if clip.duration_s <= window_s + 1e-6]
    return kept, [clip for clip in clips if clip.duration_s > window_s + 1e-6]


# -- speech lists ------------------------------------------------------------------------------


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
                f'{where}: "offset" asks for a piece of {entry.audio_filepath}; only whole files '
                "are read: cut it out into a file"
            )
        stem = Path(entry.audio_filepath).with_suffix("").as_posix()
        name = stem if entry.id is None else str(entry.id)
        speaker = None if entry.speaker is None else str(entry.speaker)
        rows.append(_Row(where, entry.audio_filepath, entry.text, speaker, slug(name)))
    if not rows:
        raise BadManifest(f"{path}: the manifest is empty; write one {LINE} per line")
    return rows


def _librispeech(root: Path, transcripts: Sequence[Path]) -> list[_Row]:
    rows = []
    for transcript in transcripts:
        beside = {p.stem: p for p in transcript.parent.iterdir() if _is_audio(p)}
        named = set()
        for number, line in enumerate(_read(transcript).split("\n"), 1):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            where = f"{transcript}:{number}"
            if not text:
                raise BadManifest(f"{where}: {name} has no text; write 'ID WHAT IS SAID'")
            audio = beside.get(name, transcript.parent / f"{name}.flac")
            named.add(name)
            relative = audio.relative_to(root).as_posix()
            rows.append(_Row(where, relative, text, name.split("-")[0], slug(name)))
        for name in sorted(set(beside) - named):
            raise BadManifest(f"{beside[name]}: not in {transcript.name}; add 'ID WHAT IS SAID'")
    if not rows:
        raise BadManifest(f"{root}: its .trans.txt files are empty; write 'ID WHAT IS SAID' lines")
    return rows


def _folder(root: Path) -> list[_Row]:
    rows = []
    for audio in sorted(path for path in root.rglob("*") if _is_audio(path)):
        relative = audio.relative_to(root)
        if any(part.startswith(".") for part in relative.parts):
            continue
        text = audio.with_suffix(".txt")
        if not text.is_file():
            manifests = ", ".join(str(path) for path in sorted(root.glob("*.jsonl")))
            advice = f"or give a manifest: {manifests}" if manifests else '"" for silence'
            raise BadManifest(f"{audio}: no {text.name} to score it by; write it, {advice}")
        speaker = relative.parts[0] if len(relative.parts) > 1 else None
        spoken = " ".join(_read(text).split())
        name = slug(relative.with_suffix("").as_posix())
        rows.append(_Row(str(audio), relative.as_posix(), spoken, speaker, name))
    if not rows:
        raise BadManifest(f"{root}: no {', '.join(AUDIO_SUFFIXES)} file in it; give {KINDS}")
    return rows


def _clip(root: Path, row: _Row) -> Clip:
    try:
        audio = (root / row.audio).resolve()
    except (OSError, RuntimeError, ValueError) as exc:  # a symlink loop, a NUL, a name too long
        raise BadManifest(f"{row.where}: {row.audio!r} is no path ({exc}); mend it") from exc
    if not audio.is_relative_to(root):
        raise BadManifest(
            f"{row.where}: {row.audio} leads out of {root}; audio must lie in the list's own "
            "folder: move it there, or the list to a folder above both"
        )
    try:
        duration_s = _duration_s(audio)
    except BadAudio as exc:
        raise BadAudio(f"{row.where}: {exc}" if row.where != str(audio) else str(exc)) from exc
    return Clip(id=row.id, audio=audio, text=row.text, duration_s=duration_s, speaker=row.speaker)


def slug(name: str) -> str:
    """Turn a name into an id that is a safe file name on any board: `[A-Za-z0-9._-]`, 100 at most.

    A name that loses more than its slashes keeps a hash, or two Chinese names would become one.
    """
    kept = name.replace("/", "_")
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", kept).lstrip(".-")[:100]
    if safe == kept:
        return safe
    return f"{safe[:80] or 'clip'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as exc:
        raise BadManifest(f"{path}: cannot be read ({exc.strerror}); check the path") from exc
    except UnicodeDecodeError as exc:
        raise BadManifest(f"{path}: not UTF-8 (byte {exc.start}); save it as UTF-8") from exc


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()


# -- audio -------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[sf.SoundFile]:
    """Open audio, or raise BadAudio; libsndfile reads a cut wav or ogg as a shorter, sound one."""
    if not path.is_file():
        raise BadAudio(f"{path}: no such audio file; check the path")
    if not path.stat().st_size:
        raise _no_sound(path)
    try:
        file = sf.SoundFile(path)
    except (sf.SoundFileError, TypeError) as exc:
        raise BadAudio(
            f"{path}: not audio, or cut inside its header; wav, flac, mp3 and ogg are read: copy or convert it again"
        ) from exc
    with file:
        if file.format not in FORMATS:
            raise BadAudio(f"{path}: {file.format} audio; convert it to wav, flac, mp3 or ogg")
        with path.open("rb") as raw:
            if _is_cut(raw, file.format, path.stat().st_size):
                raise _truncated(path)
        if file.samplerate <= 0 or file.frames <= 0:
            raise _no_sound(path)
        if file.frames > 1 << 40:  # libsndfile's word for a FLAC streamed into a pipe
            raise BadAudio(f"{path}: its header does not say how long it is; convert it again")
        yield file


def _blocks(path: Path, file: Any) -> Iterator[NDArray[np.float32]]:
    """Read `(n, channels) float32` blocks to the end: a header that lies cannot claim memory."""
    try:
        while len(block := file.read(1 << 20, dtype="float32", always_2d=True)):
            yield block
    except sf.SoundFileError as exc:
        raise _truncated(path) from exc


def _duration_s(path: Path) -> float:
    """Tell how long the audio lasts by its own header, after a look at its last sample."""
    with _opened(path) as file:
        frames = file.frames
        if file.format == "FLAC":
            try:
                file.seek(frames - 1)
                file.read(1)
            except sf.SoundFileError as exc:
                raise _truncated(path) from exc
        elif file.format == "MP3":
            with path.open("rb") as raw:
                counted = _mp3_bytes(raw) is not None
            if not counted:  # libsndfile guesses from the first frame's bit rate
                frames = sum(len(block) for block in _blocks(path, file))
        return float(frames / file.samplerate)


def _is_cut(raw: BinaryIO, kind: str, size: int) -> bool:
    """Tell whether a file ends before its own header or last page says."""
    if kind in ("WAV", "WAVEX"):
        return _wav_is_cut(raw, size)
    if kind == "OGG":
        return _ogg_is_cut(raw, size)
    if kind == "MP3":
        declared = _mp3_bytes(raw)
        # mpg123 allows 1 % too: encoders disagree on whether the tag's own frame counts
        return declared is not None and size < 0.99 * declared
    return False


def _wav_is_cut(raw: BinaryIO, size: int) -> bool:
    order = ">" if raw.read(4) == b"RIFX" else "<"
    raw.seek(12)
    while len(head := raw.read(8)) == 8:
        (length,) = struct.unpack(order + "I", head[4:])
        if head[:4] == b"data":
            # sox and ffmpeg write (nearly) the largest number when they stream into a pipe
            return bool(length < 0x7FFF_0000 and raw.tell() + length > size)
        raw.seek(length + length % 2, 1)
    return True


def _ogg_is_cut(raw: BinaryIO, size: int) -> bool:
    """Tell whether the last page is incomplete or not marked as the last (RFC 3533, section 6)."""
    raw.seek(max(0, size - 2 * 65_307))
    tail = raw.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    body = sum(page[27 : 27 + page[26]])
    return len(page) < 27 + page[26] + body or not page[5] & 4


def _mp3_bytes(raw: BinaryIO) -> int | None:
    """Read how many bytes an mp3's Xing or Info tag declares; None where there is no tag."""
    raw.seek(0)
    start = 0
    while len(head := raw.read(10)) == 10 and head[:3] == b"ID3":
        start += 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
        start += 10 if head[5] & 0x10 else 0
        raw.seek(start)
    raw.seek(start)
    frame = raw.read(256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at >= 0 and len(frame) >= at + 16 and frame[at + 7] & 2:
        field = at + (12 if frame[at + 7] & 1 else 8)
        return start + int(struct.unpack(">I", frame[field : field + 4])[0])
    return None


def _truncated(path: Path) -> BadAudio:
    return BadAudio(f"{path}: truncated: it ends before its header says; copy or fetch it again")


def _no_sound(path: Path) -> BadAudio:
    return BadAudio(f"{path}: holds no audio (zero samples); take it out or record it again")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as raw:
            return hashlib.file_digest(raw, "sha256").hexdigest()
    except OSError as exc:
        raise BadAudio(f"{path}: cannot be read ({exc.strerror}); check the path") from exc


def _same_samples(one: Clip, other: Clip) -> bool:
    if abs(one.duration_s - other.duration_s) > 0.001:
        return False
    return bool(np.array_equal(load_audio(one.audio), load_audio(other.audio)))


def _first_five(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
