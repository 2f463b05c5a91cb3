"""Hold the shipped recogniser and its speech to what data/README.md promises."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import soundfile
import torch
import whisper
from whisper.normalizers import EnglishTextNormalizer

DATA = Path(__file__).resolve().parents[2] / "data"
sys.path.insert(0, str(DATA))  # data/ holds scripts, not an installed package

import nano_check  # noqa: E402
import nano_corpus  # noqa: E402
import nano_espeak  # noqa: E402
import nano_speech  # noqa: E402

SHIPPED = DATA / "whisper-nano"
CHECKPOINT = SHIPPED / "whisper-nano.pt"
EVALUATION = SHIPPED / "evaluation.jsonl"
CALIBRATION = SHIPPED / "calibration.jsonl"
MAX_BYTES = 15_000_000

# Whisper leaves its own english.json and gpt2.tiktoken open.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file .*(english.json|tiktoken):ResourceWarning"),
]


@pytest.fixture(scope="module")
def evaluation() -> list[dict]:
    """Return the rows of the evaluation list."""
    return nano_check.read_manifest(EVALUATION)


@pytest.fixture(scope="module")
def calibration() -> list[dict]:
    """Return the rows of the calibration list."""
    return nano_check.read_manifest(CALIBRATION)


def test_checkpoint_is_stock_fp16_and_small() -> None:
    assert CHECKPOINT.stat().st_size <= MAX_BYTES
    checkpoint = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
    assert set(checkpoint) == {"dims", "model_state_dict"}
    state = checkpoint["model_state_dict"]
    assert {value.dtype for value in state.values()} == {torch.float16}
    stock = whisper.model.Whisper(whisper.model.ModelDimensions(**checkpoint["dims"]))
    assert set(state) == set(stock.state_dict())


def test_flac_of_both_lists_is_small() -> None:
    clips = sorted(SHIPPED.rglob("*.flac"))
    assert sum(clip.stat().st_size for clip in clips) < MAX_BYTES


@pytest.mark.parametrize("manifest", [CALIBRATION, EVALUATION], ids=lambda path: path.stem)
def test_manifest_describes_its_clips(manifest: Path) -> None:
    rows = nano_check.read_manifest(manifest)
    assert len({row["id"] for row in rows}) == len(rows)
    named = {manifest.parent / row["audio_filepath"] for row in rows}
    assert named == set((SHIPPED / "clips" / manifest.stem).glob("*.flac"))
    for row in rows:
        info = soundfile.info(manifest.parent / row["audio_filepath"])
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert info.frames / 16_000 == pytest.approx(row["duration"], abs=1e-3)
        assert info.frames <= nano_check.CONTEXT_SAMPLES


def test_evaluation_list_is_large_enough(evaluation: list[dict]) -> None:
    words = [word for row in evaluation for word in row["text"].split()]
    assert len(evaluation) >= 250
    assert len(words) >= 1200
    assert len(set(words)) >= 60
    assert {len(row["text"].split()) for row in evaluation} <= set(range(1, 11))


def test_lists_share_no_voice(evaluation: list[dict], calibration: list[dict]) -> None:
    heard, tested = ({row["speaker"].split("+")[1] for row in rows} for rows in (calibration, evaluation))
    assert not heard & tested
    trained = {*nano_speech.TRAINING_VARIANTS, *nano_speech.DEVELOPMENT_VARIANTS}
    assert not trained & tested


def test_normaliser_keeps_every_word_apart(evaluation: list[dict], calibration: list[dict]) -> None:
    normalise = EnglishTextNormalizer()
    for row in [*evaluation, *calibration]:
        words = row["text"].split()
        numbers = [word in nano_speech.NUMBER_WORDS for word in words]
        assert not any(a and b for a, b in pairwise(numbers)), row["text"]
        assert normalise(row["text"]) == " ".join(normalise(word) for word in words)


def test_word_errors_are_counted_apart() -> None:
    assert nano_check.align(list("abcd"), list("abcd")) == (0, 0, 0)
    assert nano_check.align(list("abcd"), list("axcd")) == (1, 0, 0)
    assert nano_check.align(list("abcd"), list("acd")) == (0, 1, 0)
    assert nano_check.align(list("abcd"), list("abxcd")) == (0, 0, 1)
    assert nano_check.align([], list("ab")) == (0, 0, 2)
    errors = nano_check.word_errors(["red lamp", "stop"], ["red lamp.", "start stop"])
    assert (errors.insertions, errors.n_words) == (1, 3)
    assert errors.wer == pytest.approx(1 / 3)


def test_stock_whisper_reads_the_evaluation_list_within_5_percent() -> None:
    errors = nano_check.check(CHECKPOINT, EVALUATION)
    assert errors.n_words >= 1200
    assert errors.wer <= 0.05, str(errors)


@pytest.mark.skipif(not nano_espeak.have_espeak(), reason="espeak-ng is not installed")
def test_synthesis_is_deterministic() -> None:
    voice = nano_speech.voices_of(nano_speech.TRAINING_VARIANTS)[0]
    first, again, other = (nano_speech.draw_utterance([seed, 0, 1], voice, 4) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    # A process each: within one, espeak-ng goes on from the text before.
    spoken = [next(nano_corpus.in_processes(nano_corpus.hear, [drawn], 1)) for drawn in (first, again)]
    assert (spoken[0].mel == spoken[1].mel).all()
    assert spoken[0].words == spoken[1].words


@pytest.mark.skipif(not nano_espeak.have_espeak(), reason="espeak-ng is not installed")
def test_labels_follow_the_words() -> None:
    voice = nano_speech.voices_of(nano_speech.TRAINING_VARIANTS)[0]
    drawn = nano_speech.draw_utterance([7, 0, 2], voice, 6)
    heard = next(nano_corpus.in_processes(nano_corpus.hear, [drawn], 1))
    labels = nano_corpus.labels_of(len(heard.mel) // 2, heard.sounds, heard.words, drawn.text, [""])
    said = [nano_speech.WORDS.index(word) + 1 for word in drawn.text.split()]
    assert [int(labels[(start + end) // 2, 1]) for start, end in heard.words] == said
    assert [int(labels[(start + end) // 2, 2]) for start, end in heard.words] == [0, *said[:-1]]
    assert labels[-1].tolist() == [0, 0, said[-1]]
