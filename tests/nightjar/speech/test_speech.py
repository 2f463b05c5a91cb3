"""Speech lists and audio files, all written here; real speech where this machine has it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from nightjar.errors import BadAudio, BadManifest, NightjarError, SpeakersOverlap
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip, check_disjoint, file_safe_id, load_speech, speech_digest, split_by_window
from tests.conftest import need

SPEECH = Path(os.environ.get("NIGHTJAR_DATA", Path(__file__).parents[4] / "shared" / "data")) / "librispeech"
FORMATS = ("wav", "flac", "ogg", "mp3")


def tone(seconds: float = 1.0, rate: int = 16_000, hz: float = 440.0) -> NDArray[np.float32]:
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write(path: Path, seconds: float = 1.0, rate: int = 16_000, hz: float = 440.0, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, tone(seconds, rate, hz), rate, **how)
    return path


def manifest(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "list.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


def refused(path: Path, kind: type[NightjarError], *words: str) -> None:
    """Expect exit 2 and one line that holds every word."""
    with pytest.raises(kind) as caught:
        load_speech(path)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    for word in words:
        assert word in message


# -- lists -------------------------------------------------------------------------------------


def test_manifest_is_read_with_what_the_files_say(tmp_path: Path) -> None:
    write(tmp_path / "b" / "two.wav", seconds=0.5, rate=8_000)
    write(tmp_path / "one.flac", seconds=0.25)
    path = manifest(
        tmp_path,
        {"audio_filepath": "b/two.wav", "text": "TWO\u2028LINES", "duration": 99.0, "speaker": 7},
        "",
        {"audio_filepath": "one.flac", "text": "", "id": "a-one", "speaker": None},
        {"audio_filepath": str(tmp_path / "one.flac"), "text": "absolute, but inside", "id": "c"},
    )
    clips = load_speech(path)
    assert [clip.id for clip in clips] == ["a-one", "b_two", "c"]
    assert [clip.duration_s for clip in clips] == [0.25, 0.5, 0.25]  # the manifest's 99 s are not believed
    assert [clip.text for clip in clips] == ["", "TWO\u2028LINES", "absolute, but inside"]
    assert [clip.speaker for clip in clips] == [None, "7", None]
    assert clips[1].audio == (tmp_path / "b" / "two.wav").resolve()


def test_manifest_order_changes_nothing(tmp_path: Path) -> None:
    lines = [{"audio_filepath": write(tmp_path / f"{hz}.wav", hz=hz).name, "text": "a"} for hz in (300, 100, 200)]
    forth = load_speech(manifest(tmp_path, *lines))
    assert load_speech(manifest(tmp_path, *lines[::-1])) == forth
    assert [clip.id for clip in forth] == ["100", "200", "300"]


def test_librispeech_tree(tmp_path: Path) -> None:
    for name in ("1089-134686-0001", "1089-134686-0000"):
        write(tmp_path / "1089" / "134686" / f"{name}.flac")
    transcript = tmp_path / "1089" / "134686" / "1089-134686.trans.txt"
    transcript.write_text("1089-134686-0000 HE HOPED\n1089-134686-0001 STUFF IT\n")
    clips = load_speech(tmp_path)
    assert [(clip.id, clip.speaker, clip.text) for clip in clips] == [
        ("1089-134686-0000", "1089", "HE HOPED"),
        ("1089-134686-0001", "1089", "STUFF IT"),
    ]
    transcript.write_text("1089-134686-0000 HE HOPED\n1089-134686-0001\n")
    refused(tmp_path, BadManifest, "1089-134686.trans.txt:2", "no text")
    transcript.write_text("1089-134686-0000 HE HOPED\n")
    refused(tmp_path, BadManifest, "1089-134686-0001.flac", "in no .trans.txt")
    for outside in ("../../../x", "/elsewhere/x"):
        transcript.write_text(f"1089-134686-0000 A\n1089-134686-0001 B\n{outside} C\n")
        refused(tmp_path, BadManifest, "1089-134686.trans.txt:3", "leads out of")
    write(tmp_path / "1188" / "1" / "1188-1-0000.flac")
    transcript.write_text("1089-134686-0000 HE HOPED\n1089-134686-0001 STUFF IT\n")
    refused(tmp_path, BadManifest, "1188-1-0000.flac", "in no .trans.txt")  # a folder without any is not left out
    (tmp_path / "1188" / "1" / "1188-1-0000.flac").unlink()
    transcript.write_text("1089-134686-0002 WHO\n1089-134686-0000 A\n1089-134686-0001 B\n")
    refused(tmp_path, BadAudio, "1089-134686.trans.txt:1", "1089-134686-0002.flac", "no such audio file")


def test_plain_folder(tmp_path: Path) -> None:
    for name, text in (("ann/1.wav", "one"), ("bob/1.ogg", " two\n words "), ("loose.MP3", "")):
        write(tmp_path / name, format="MP3" if name.endswith("MP3") else None)
        (tmp_path / name).with_suffix(".txt").write_text(text)
    (tmp_path / "ann" / "._1.wav").write_bytes(b"what macOS leaves")
    clips = load_speech(tmp_path)
    assert [(clip.id, clip.speaker, clip.text) for clip in clips] == [
        ("ann_1", "ann", "one"),
        ("bob_1", "bob", "two words"),
        ("loose", None, ""),
    ]
    (tmp_path / "bob" / "1.txt").unlink()
    refused(tmp_path, BadManifest, "bob/1.ogg", "1.txt")
    (tmp_path / "bob" / "1.txt").write_text("back")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nothing.wav")
    (tmp_path / "gone.txt").write_text("a dangling link is not passed over")
    refused(tmp_path, BadAudio, "no such audio file")
    (tmp_path / "gone.txt").unlink()
    manifest(tmp_path, "{}")
    refused(tmp_path, BadManifest, "list.jsonl")  # and names the manifest that lies there


def test_what_is_no_speech_list(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", BadManifest, "nowhere", "no such file or folder", ".jsonl")
    refused(tmp_path, BadManifest, "no .wav")
    refused(write(tmp_path / "a.wav"), BadManifest, "a.wav", "not a speech list")
    refused(manifest(tmp_path), BadManifest, "list.jsonl", "empty")
    refused(manifest(tmp_path, "", "  "), BadManifest, "empty")
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"audio_filepath": "a.wav", "text": "caf\xe9"}\n')
    refused(path, BadManifest, "latin.jsonl", "not UTF-8")
    path.write_bytes(b'\xef\xbb\xbf{"audio_filepath": "a.wav", "text": "BOM"}\n')
    assert load_speech(path)[0].text == "BOM"


GOOD = {"audio_filepath": "a.wav", "text": "a"}


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ('{"audio_filepath": "a.wav", "text": ', BadManifest, ("JSON",)),
        ("[1, 2]", BadManifest, ("object",)),
        ({"text": "a"}, BadManifest, ('"audio_filepath"', "required")),
        ({"audio_filepath": "", "text": "a"}, BadManifest, ('"audio_filepath"',)),
        ({"audio_filepath": "a.wav"}, BadManifest, ('"text"', "required")),
        ({"audio_filepath": "a.wav", "text": None}, BadManifest, ('"text"',)),
        (GOOD | {"speaker": ["x"], "id": "b"}, BadManifest, ('"speaker"',)),
        (GOOD | {"offset": 1.5, "id": "b"}, BadManifest, ('"offset"', "whole files")),
        (GOOD, BadManifest, ("'a'", "list.jsonl:1", "unique")),
        ({"audio_filepath": "b.wav", "text": "b"}, BadAudio, ("b.wav", "no such audio file")),
        ({"audio_filepath": "../out.wav", "text": "b"}, BadManifest, ("../out.wav", "leads out of")),
        ({"audio_filepath": "/elsewhere/a.wav", "text": "b"}, BadManifest, ("/elsewhere/a.wav", "leads out of")),
        ({"audio_filepath": "link.wav", "text": "b"}, BadManifest, ("link.wav", "leads out of")),
        ({"audio_filepath": "loop.wav", "text": "b"}, NightjarError, ("loop.wav",)),
        ({"audio_filepath": "a\0.wav", "text": "b"}, BadManifest, ("is not a path",)),
        ({"audio_filepath": "text.wav", "text": "b"}, BadAudio, ("text.wav", "not audio")),
        ({"audio_filepath": "zero.wav", "text": "b"}, BadAudio, ("zero.wav", "no audio")),
        ({"audio_filepath": "nil.wav", "text": "b"}, BadAudio, ("nil.wav", "no audio")),
        ({"audio_filepath": "a.aiff", "text": "b", "id": "b"}, BadAudio, ("AIFF", "wav, flac, mp3 or ogg")),
    ],
)
def test_a_bad_line_is_named(
    tmp_path: Path, line: dict[str, Any] | str, kind: type[NightjarError], words: tuple[str, ...]
) -> None:
    folder = tmp_path / "speech"
    write(folder / "a.wav")
    write(folder / "a.aiff")
    write(tmp_path / "out.wav")
    (folder / "link.wav").symlink_to(tmp_path / "out.wav")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    (folder / "text.wav").write_text("This is no audio at all. " * 20)
    (folder / "zero.wav").touch()
    sf.write(folder / "nil.wav", np.zeros(0, np.int16), 16_000)
    refused(manifest(folder, GOOD, line), kind, "list.jsonl:2", *words)


def test_ids_are_safe_file_names() -> None:
    assert file_safe_id("1089-134686-0000") == "1089-134686-0000"
    assert file_safe_id("ann/1") == "ann_1"
    names = ["..", "a b", "a\tb", "中文", "日本", "x" * 300, "-rf", "c:\\d", ".hidden", "é", ""]
    slugs = [file_safe_id(name) for name in names]
    assert len(set(slugs)) == len(names)
    for made in slugs:
        assert made.isascii()
        assert 0 < len(made) <= 100
        assert made[0] not in ".-"
        assert not set(made) & set("/\\: \t")


# -- audio -------------------------------------------------------------------------------------


def test_16_bit_16_khz_mono_comes_back_bit_for_bit(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).integers(-32768, 32768, 5_000).astype(np.int16)
    for suffix in ("wav", "flac"):
        sf.write(tmp_path / f"a.{suffix}", wave, 16_000)
        read = load_audio(tmp_path / f"a.{suffix}")
        assert read.dtype == np.int16
        np.testing.assert_array_equal(read, wave)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("suffix", FORMATS)
def test_any_rate_and_format_keeps_length_and_pitch(tmp_path: Path, suffix: str, rate: int) -> None:
    path = write(tmp_path / f"a.{suffix}", seconds=1.5, rate=rate)
    path.with_suffix(".txt").write_text("a")
    wave = load_audio(path)
    # an mp3 encoder's delay may add a frame or two at either end
    assert len(wave) == pytest.approx(24_000, abs=2_500 if suffix == "mp3" else 1)
    middle = wave[4_000:20_000] / 32768
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * 16_000 / len(middle) == pytest.approx(440, abs=2)
    assert np.abs(middle).max() == pytest.approx(0.4, abs=0.05)
    assert load_speech(tmp_path)[0].duration_s == pytest.approx(1.5, abs=0.16 if suffix == "mp3" else 1e-4)


def test_stereo_is_averaged_and_peaks_are_clipped(tmp_path: Path) -> None:
    left, right = tone(), np.zeros_like(tone())
    sf.write(tmp_path / "a.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav") / 32768, left / 2, atol=1e-4)
    sf.write(tmp_path / "loud.wav", 4 * tone(), 16_000, subtype="FLOAT")
    loud = load_audio(tmp_path / "loud.wav")
    assert (loud.min(), loud.max()) == (-32768, 32767)
    wave = tone()
    wave[7] = np.nan
    sf.write(tmp_path / "nan.wav", wave, 16_000, subtype="FLOAT")
    with pytest.raises(BadAudio, match=r"nan\.wav.*NaN"):
        load_audio(tmp_path / "nan.wav")


@pytest.mark.parametrize("keep", [0.97, 0.5, 0.02])
@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_audio_is_refused_in_a_list_and_on_its_own(tmp_path: Path, suffix: str, keep: float) -> None:
    path = write(tmp_path / f"a.{suffix}", seconds=3.0)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    line = manifest(tmp_path, {"audio_filepath": path.name, "text": "a"})
    refused(line, BadAudio, "list.jsonl:1", path.name, "again")
    with pytest.raises(BadAudio, match=r"truncated|truncated in its header"):
        load_audio(path)


def test_flac_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    sf.write(path, np.random.default_rng(0).standard_normal(48_000) * 0.1, 16_000)
    content = bytearray(path.read_bytes())
    content[40_000:44_000] = bytes(4_000)
    path.write_bytes(content)
    with pytest.raises(BadAudio, match=r"a\.flac"):
        load_audio(path)


def test_a_wav_streamed_into_a_pipe_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    at = content.find(b"data")
    content[4:8] = content[at + 4 : at + 8] = b"\xff\xff\xff\xff"  # what ffmpeg -f wav - writes
    path.write_bytes(content)
    assert len(load_audio(path)) == 16_000


@pytest.mark.parametrize("id3", [b"", b"ID3\x04\0\0\0\0\x10\0" + bytes(2_048)])
def test_an_mp3_without_a_length_is_read_to_its_end(tmp_path: Path, id3: bytes) -> None:
    path = write(tmp_path / "a.mp3", seconds=3.0)
    content = path.read_bytes()
    path.write_bytes(id3 + content)
    path.with_suffix(".txt").write_text("a")
    assert load_speech(tmp_path)[0].duration_s == pytest.approx(3.0, abs=0.1)
    first = 72 * 64_000 // 16_000  # the frame that holds the tag alone, at 64 kbit/s
    assert b"Xing" in content[:first]
    path.write_bytes(id3 + content[first:])  # libsndfile alone would guess, and read, 1.5 s
    assert load_speech(tmp_path)[0].duration_s == pytest.approx(3.0, abs=0.1)
    assert len(load_audio(path)) == pytest.approx(48_000, abs=1_600)
    threads = threading.active_count()
    for _ in range(5):
        load_audio(path)
    assert threading.active_count() == threads


@pytest.mark.parametrize("at", [24, 28])
def test_a_header_that_says_0_hz_is_refused(tmp_path: Path, at: int) -> None:
    path = write(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    content[24:28] = bytes(4)
    content[at : at + 4] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(BadAudio, match=r"a\.wav"):
        load_audio(path)


def test_missing_audio_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "no.wav", tmp_path):
        with pytest.raises(BadAudio, match="no such audio file"):
            load_audio(path)


def test_librosa_is_imported_only_to_resample(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")
    code = (
        "import sys; from pathlib import Path; from nightjar.speech.audio import load_audio; "
        "load_audio(Path(sys.argv[1])); sys.exit('librosa' in sys.modules or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)


# -- what a list is worth ----------------------------------------------------------------------


def plain(folder: Path, **hz: float) -> list[Clip]:
    for name, pitch in hz.items():
        path = write(folder / f"{name.replace('_', '/')}.wav", hz=pitch)
        path.with_suffix(".txt").write_text(name)
    return load_speech(folder)


def test_digest_names_content_not_place(tmp_path: Path) -> None:
    one = plain(tmp_path / "here", ann_1=300, bob_2=400)
    assert speech_digest(plain(tmp_path / "there", bob_2=400, ann_1=300)) == speech_digest(one)
    assert speech_digest(one[::-1]) == speech_digest(one)
    changes: list[Callable[[Clip], Clip]] = [
        lambda clip: clip.model_copy(update={"text": "x"}),
        lambda clip: clip.model_copy(update={"speaker": None}),
        lambda clip: clip.model_copy(update={"id": "x"}),
        lambda clip: clip.model_copy(update={"audio": one[1].audio}),
    ]
    digests = {speech_digest([change(one[0]), one[1]]) for change in changes}
    assert len(digests | {speech_digest(one), speech_digest(one[:1])}) == 6


def test_overlap_is_refused_by_speaker_and_by_sound(tmp_path: Path) -> None:
    calibration = plain(tmp_path / "c", ann_1=300, bob_1=400)
    check_disjoint(calibration, plain(tmp_path / "ok", cyd_1=500))
    with pytest.raises(SpeakersOverlap, match=r"1 speaker.*ann"):
        check_disjoint(calibration, plain(tmp_path / "s", ann_9=700))
    with pytest.raises(SpeakersOverlap, match=r"1 utterance.*dee_4 \(there ann_1\)"):
        check_disjoint(calibration, plain(tmp_path / "u", dee_4=300))
    many = plain(tmp_path / "m", **{f"s{n}_1": 300.0 + n for n in range(7)})
    with pytest.raises(SpeakersOverlap, match=r"7 speaker.*s0, s1, s2, s3, s4 …"):
        check_disjoint(many, many)


def test_an_id_alone_is_no_overlap_but_the_same_sound_in_another_container_is(tmp_path: Path) -> None:
    calibration = plain(tmp_path / "c", clip=300)
    check_disjoint(calibration, plain(tmp_path / "e", clip=400))
    sf.write(tmp_path / "f.flac", sf.read(calibration[0].audio)[0], 16_000)
    with pytest.raises(SpeakersOverlap, match="clip"):
        check_disjoint(calibration, [calibration[0].model_copy(update={"audio": tmp_path / "f.flac"})])


def test_the_window_keeps_what_fits(tmp_path: Path) -> None:
    clips = [Clip(id=str(s), audio=tmp_path, text="", duration_s=s, speaker=None) for s in (4.9, 5.0, 5.01, 30)]
    kept, skipped = split_by_window(clips, 5.0)
    assert [clip.duration_s for clip in kept] == [4.9, 5.0]
    assert [clip.duration_s for clip in skipped] == [5.01, 30]


def test_shared_librispeech_is_read_whole_and_disjoint() -> None:
    need("shared", SPEECH.is_dir(), "real speech: set NIGHTJAR_DATA to a folder with librispeech/")
    calibration = load_speech(SPEECH / "calibration.jsonl")
    evaluation = load_speech(SPEECH / "evaluation.jsonl")
    assert (len(calibration), len(evaluation)) == (200, 217)
    assert sum(len(clip.text.split()) for clip in evaluation) == 3_648
    check_disjoint(calibration, evaluation)
    with pytest.raises(SpeakersOverlap):
        check_disjoint(calibration, [*evaluation, calibration[0]])
    assert len(load_audio(evaluation[0].audio)) == round(evaluation[0].duration_s * 16_000)
