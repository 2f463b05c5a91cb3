"""Make the shipped Whisper and the speech it is judged on, or check what is shipped.

python data/make_whisper_nano.py           # speak, train, decode, then write data/whisper-nano
python data/make_whisper_nano.py --check   # only decode the shipped list with stock Whisper
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from nano_check import WordErrors, check, transcribe, word_errors
from nano_corpus import Vocabulary, speak_corpus
from nano_espeak import have_espeak
from nano_frames import in_processes
from nano_model import DIMENSIONS, stock_model
from nano_speech import (
    DEVELOPMENT_VARIANTS,
    EVALUATION_VARIANTS,
    MAX_SECONDS,
    MAX_WORDS,
    SAMPLE_RATE_HZ,
    TRAINING_VARIANTS,
    WORDS,
    Utterance,
    draw_corpus,
    draw_counts,
    synthesise,
    voices_of,
)
from nano_training import Schedule, train
from whisper.model import Whisper

NAME = "whisper-nano"
MAX_WER = 0.05
MAX_BYTES = 15_000_000
N_CALIBRATION_CLIPS = 110
N_EVALUATION_CLIPS = 260
N_DEVELOPMENT_CLIPS = 70
# Each list of a seed draws from its own stream.
TRAINING, DEVELOPMENT, CALIBRATION, EVALUATION = range(4)
# Quiet and fairly clean, so that the FLAC stays small: noise is what does not compress.
SHIPPED_RANGES = {"snr_db": (20.0, 40.0), "level_dbfs": (-47.0, -37.0)}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="holds the folder")
    parser.add_argument("--check", action="store_true", help="only decode what is shipped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--clips", type=int, default=24_000, help="training clips to speak")
    parser.add_argument("--steps", type=int, default=5_500, help="training steps")
    parser.add_argument("--frames", type=int, default=6_000, help="log-mel frames a batch")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--work", type=Path, help="keep the spoken corpus and the state of training here, and go on")
    return parser.parse_args(arguments)


def write_list(folder: Path, name: str, utterances: list[Utterance], n_processes: int) -> Path:
    """Write the clips of a list as FLAC and its NeMo-style manifest, which is returned."""
    clips = folder / "clips" / name
    clips.mkdir(parents=True)
    lines = []
    for n, samples in enumerate(in_processes(synthesise, utterances, n_processes)):
        clip = clips / f"{name}-{n:03d}.flac"
        duration_s = len(samples) / SAMPLE_RATE_HZ
        if duration_s > MAX_SECONDS:
            raise ValueError(f"{clip.stem} lasts {duration_s:.1f} s; at most {MAX_SECONDS} s fit")
        soundfile.write(clip, samples, SAMPLE_RATE_HZ, subtype="PCM_16", compression_level=1.0)
        row = {
            "audio_filepath": clip.relative_to(folder).as_posix(),
            "text": utterances[n].text,
            "duration": round(duration_s, 3),
            "speaker": utterances[n].voice,
            "id": clip.stem,
        }
        lines.append(json.dumps(row))
    manifest = folder / f"{name}.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def write_lists(folder: Path, seed: int, n_processes: int) -> Path:
    """Write the calibration and the evaluation list, and return the evaluation manifest."""
    rng = np.random.default_rng([seed, 200])
    evaluation = voices_of(EVALUATION_VARIANTS)
    shown = sorted(rng.choice(evaluation, 40, replace=False).tolist())
    lists = {
        "calibration": (CALIBRATION, voices_of(TRAINING_VARIANTS), N_CALIBRATION_CLIPS),
        "evaluation": (EVALUATION, shown, N_EVALUATION_CLIPS),
    }
    for name, (part, voices, n_clips) in lists.items():
        n_words = [1 + n % MAX_WORDS for n in range(n_clips)]
        utterances = draw_corpus(seed, part, voices, rng.permutation(n_words).tolist(), **SHIPPED_RANGES)
        manifest = write_list(folder, name, utterances, n_processes)
    n_bytes = sum(clip.stat().st_size for clip in folder.rglob("*.flac"))
    print(f"FLAC of both lists: {n_bytes / 1e6:.2f} MB", flush=True)
    if n_bytes >= MAX_BYTES:
        raise ValueError(f"{n_bytes} bytes of FLAC; less than {MAX_BYTES} may be shipped")
    return manifest


def make(options: argparse.Namespace, folder: Path, work: Path) -> None:
    """Speak the lists and the corpus, train, and write all that is shipped to a folder."""
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    write_lists(folder, options.seed, options.processes)

    development = draw_corpus(
        options.seed,
        DEVELOPMENT,
        voices_of(DEVELOPMENT_VARIANTS),
        [1 + n % MAX_WORDS for n in range(N_DEVELOPMENT_CLIPS)],
    )
    clips = [
        samples.astype(np.float32) / 32768.0 for samples in in_processes(synthesise, development, options.processes)
    ]

    def development_wer(model: Whisper) -> WordErrors:
        return word_errors([u.text for u in development], transcribe(model, clips, n_batch=70))

    n_words = draw_counts(np.random.default_rng([options.seed, 300]), options.clips)
    voices = voices_of(TRAINING_VARIANTS)
    utterances = draw_corpus(options.seed, TRAINING, voices, n_words)
    corpus = speak_corpus(utterances, work, options.processes)
    print(
        f"{len(corpus.texts)} clips, {corpus.starts[-1] / 360_000:.1f} h, "
        f"{len(voices)} voices, {len(WORDS)} words; training on {device}",
        flush=True,
    )
    vocabulary = Vocabulary(DIMENSIONS.n_vocab)
    student = train(
        corpus,
        vocabulary,
        Schedule(options.steps, options.rate, options.frames),
        seed=options.seed,
        device=device,
        state_file=work / "state.pt",
        development_wer=development_wer,
    )
    model = stock_model(student, vocabulary)
    checkpoint = {
        "dims": vars(model.dims).copy(),
        "model_state_dict": {name: value.half() for name, value in model.state_dict().items()},
    }
    torch.save(checkpoint, folder / f"{NAME}.pt")


def judge(folder: Path, *, verbose: bool = False) -> bool:
    """Print the word errors of the shipped checkpoint on the shipped list; tell if they pass."""
    began = time.monotonic()
    errors = check(folder / f"{NAME}.pt", folder / "evaluation.jsonl", verbose=verbose)
    seconds = time.monotonic() - began
    print(f"evaluation {errors}; at most {100 * MAX_WER:.0f} % passes ({seconds:.0f} s)")
    return errors.wer <= MAX_WER


def main() -> int:
    """Make or check the shipped recogniser and return 0 when its word error rate passes."""
    options = parse_arguments()
    if "OMP_WAIT_POLICY" not in os.environ:
        # OpenMP reads this when torch is loaded. Threads that spin at a barrier cost five times
        # the time of those that sleep, as soon as anything else runs on the two cores.
        os.environ["OMP_WAIT_POLICY"] = "passive"
        # Keep freed memory: handing it back between operations is a tenth of the time.
        os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(2**33)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    torch.set_num_threads(2)
    shipped = options.out / NAME
    if options.check:
        return 0 if judge(shipped, verbose=True) else 1
    if not have_espeak():
        print("espeak-ng is not on the path: install it, for example `apt install espeak-ng`")
        return 1
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out, prefix=f".{NAME}-") as scratch:
        folder = Path(scratch) / NAME
        work = options.work or Path(scratch) / "corpus"
        folder.mkdir()
        work.mkdir(parents=True, exist_ok=True)
        make(options, folder, work)
        passed = judge(folder)
        print(f"{(time.monotonic() - began) / 60:.1f} minutes in all", flush=True)
        if not passed:
            print(f"the word error rate is over the bar: {shipped} is left as it was")
            return 1
        # Only a checkpoint that passes replaces the shipped one, with the lists it was judged on.
        if shipped.exists():
            shutil.rmtree(shipped)
        folder.rename(shipped)
    return 0


if __name__ == "__main__":
    sys.exit(main())
