"""Read audio of any container and rate as 16 kHz mono int16; truncated files are refused."""

import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from nightjar.errors import BadAudio

SAMPLE_RATE = 16_000
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
# libsndfile's names of the containers whose truncation this module detects; it opens many more.
FORMATS = ("WAV", "WAVEX", "FLAC", "MP3", "OGG")
ENDLESS = 1 << 40  # frames; libsndfile gives 2^63 - 1 where it does not know


def load_audio(path: Path) -> NDArray[np.int16]:
    """Read a wav, flac, mp3 or ogg file as `(n,) int16`, 16 kHz, mono; raise BadAudio otherwise.

    Channels are averaged and the rate changed in float32; 16 kHz 16-bit mono is unchanged bit for bit.
    """
    with _open(path) as file:
        parts = [block.mean(axis=1, dtype=np.float32) for block in _blocks(file)]
        expected, rate, exact = file.frames, file.samplerate, file.format != "MP3"
    wave = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not wave.size:
        raise _no_sound(path)
    # Encoder delay and padding make an mp3's own count approximate; `_open` checked its bytes.
    if exact and wave.size < expected:
        raise _truncated(path)
    if not np.isfinite(wave).all():
        raise BadAudio(f"{path}: samples that are NaN or infinite; write the file again")
    if rate != SAMPLE_RATE:
        import librosa  # takes seconds to import, and most speech is at 16 kHz

        wave = librosa.resample(wave, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")
    return np.clip(np.rint(wave * 32768.0), -32768, 32767).astype(np.int16)


def duration_s(path: Path) -> float:
    """Return the duration by the header, after reading the last sample; raise BadAudio for a truncated file."""
    with _open(path) as file:
        frames = file.frames
        if file.format == "FLAC":
            file.seek(frames - 1)
            file.read(1)
        elif frames > ENDLESS:
            frames = sum(map(len, _blocks(file)))
        if not frames:
            raise _no_sound(path)
        return float(frames / file.samplerate)


@contextmanager
def _open(path: Path) -> Iterator[sf.SoundFile]:
    """Open audio, or raise BadAudio; libsndfile reads a truncated wav or ogg as a shorter, valid one."""
    if not path.is_file():
        raise BadAudio(f"{path}: no such audio file; check the path")
    if not path.stat().st_size:
        raise _no_sound(path)
    try:
        file = sf.SoundFile(path)
    except (sf.SoundFileError, TypeError) as exc:
        raise BadAudio(
            f"{path}: not audio, or truncated in its header; wav, flac, mp3 and ogg are read: copy or convert it again"
        ) from exc
    try:
        with file:
            if file.format not in FORMATS:
                raise BadAudio(f"{path}: {file.format} audio; convert it to wav, flac, mp3 or ogg")
            if _is_truncated(path, file.format):
                raise _truncated(path)
            if file.samplerate <= 0 or file.frames <= 0:
                raise _no_sound(path)
            if file.frames > ENDLESS:  # a FLAC that was streamed into a pipe
                raise BadAudio(f"{path}: its header does not say how long it is; convert it again")
            if file.format != "MP3" or _mp3_tag(path)[1] is not None:
                yield file
                return
        # From an mp3 without a length tag libsndfile reads only as much as the first frame's bit rate lets it guess;
        # through a pipe, which has no length either, it reads to the end.
        command = ["tail", "-c", f"+{_mp3_tag(path)[0] + 1}", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tail:
            assert tail.stdout is not None
            with sf.SoundFile(tail.stdout.fileno(), closefd=False) as file:
                yield file
    except sf.SoundFileError as exc:
        raise _truncated(path) from exc


def _blocks(file: Any) -> Iterator[NDArray[np.float32]]:
    """Read `(n, channels) float32` blocks to the end: a wrong header cannot claim memory."""
    while len(block := file.read(1 << 20, dtype="float32", always_2d=True)):
        yield block


def _is_truncated(path: Path, kind: str) -> bool:
    """Return whether a file ends before its header or last page says."""
    size = path.stat().st_size
    if kind == "MP3":
        start, declared = _mp3_tag(path)
        # mpg123 allows 1 % too: encoders disagree on whether the tag's own frame counts
        return declared is not None and size - start < 0.99 * declared
    with path.open("rb") as raw:
        if kind in ("WAV", "WAVEX"):
            return _wav_is_truncated(raw, size)
        return kind == "OGG" and _ogg_is_truncated(raw, size)


def _wav_is_truncated(raw: BinaryIO, size: int) -> bool:
    order = ">" if raw.read(4) == b"RIFX" else "<"
    raw.seek(12)
    while len(head := raw.read(8)) == 8:
        (length,) = struct.unpack(order + "I", head[4:])
        if head[:4] == b"data":
            # sox and ffmpeg write (nearly) the largest number when they stream into a pipe
            return bool(length < 0x7FFF_0000 and raw.tell() + length > size)
        raw.seek(length + length % 2, 1)
    return True


def _ogg_is_truncated(raw: BinaryIO, size: int) -> bool:
    """Return whether the last page is incomplete or not marked as the last (RFC 3533, section 6)."""
    raw.seek(max(0, size - 2 * 65_307))
    tail = raw.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    body = sum(page[27 : 27 + page[26]])
    return len(page) < 27 + page[26] + body or not page[5] & 4


def _mp3_tag(path: Path) -> tuple[int, int | None]:
    """Find where an mp3 starts after its ID3 tags, and the bytes its Xing or Info tag declares, if any."""
    with path.open("rb") as raw:
        start = 0
        while len(head := raw.read(10)) == 10 and head[:3] == b"ID3":
            start += 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
            start += 10 if head[5] & 0x10 else 0
            raw.seek(start)
        raw.seek(start)
        frame = raw.read(256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    # without the number of frames libsndfile guesses, whatever the tag says of bytes
    if at < 0 or len(frame) < at + 16 or frame[at + 7] & 3 != 3:
        return start, None
    return start, int(struct.unpack(">I", frame[at + 12 : at + 16])[0])


def _truncated(path: Path) -> BadAudio:
    return BadAudio(f"{path}: truncated: it ends before its header says; copy or fetch it again")


def _no_sound(path: Path) -> BadAudio:
    return BadAudio(f"{path}: no audio (zero samples); remove it or record it again")
