"""Make the shipped streaming Zipformer, or check what is shipped.

python data/make_zipformer_nano.py           # speak, train, export, judge, then write data/zipformer-nano
python data/make_zipformer_nano.py --check   # only hear the shipped list with sherpa-onnx

It hears the speech of whisper-nano: the same words, voices and lists.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nano_check import WordErrors, read_clip, read_manifest, word_errors
from nano_espeak import have_espeak
from nano_frames import in_processes
from nano_speech import (
    DEVELOPMENT_VARIANTS,
    MAX_WORDS,
    TRAINING_VARIANTS,
    WORDS,
    draw_corpus,
    draw_counts,
    synthesise,
    voices_of,
)
from zipformer_corpus import speak_corpus, vocabulary
from zipformer_export import export
from zipformer_layers import Shape
from zipformer_model import Transducer
from zipformer_training import Schedule, train, transcribe

NAME = "zipformer-nano"
SPEECH = "whisper-nano"  # whose lists it is judged on
MAX_WER = 0.10
MAX_BYTES = 10_000_000
N_DEVELOPMENT_CLIPS = 140
TRAINING, DEVELOPMENT = 10, 11  # streams of a seed; whisper-nano's are 0 to 3
PARTS = ("encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="holds the folder")
    parser.add_argument("--check", action="store_true", help="only hear with what is shipped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--clips", type=int, default=24_000, help="training clips to speak")
    parser.add_argument("--steps", type=int, default=5_000, help="training steps")
    parser.add_argument("--seconds", type=float, default=3_600, help="training ends by then, with the rate let down")
    parser.add_argument("--frames", type=int, default=6_000, help="log-mel frames a batch")
    parser.add_argument("--rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--work", type=Path, help="keep the spoken corpus and the state of training here, and go on")
    parser.add_argument("--weights", type=Path, help="export these weights, which a run left in --work, and judge them")
    return parser.parse_args(arguments)


def learn(options: argparse.Namespace, work: Path) -> Path:
    """Speak the corpus and train; return the file of the weights."""
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # a GPU's; a CPU knows no lesser
    voices = voices_of(DEVELOPMENT_VARIANTS)
    counts = [1 + n % MAX_WORDS for n in range(N_DEVELOPMENT_CLIPS)]
    development = draw_corpus(options.seed, DEVELOPMENT, voices, counts)
    waves = list(in_processes(synthesise, development, options.processes))

    def development_wer(model: Transducer) -> WordErrors:
        return word_errors([u.text for u in development], transcribe(model, waves, device))

    n_words = draw_counts(np.random.default_rng([options.seed, 310]), options.clips)
    voices = voices_of(TRAINING_VARIANTS)
    corpus = speak_corpus(draw_corpus(options.seed, TRAINING, voices, n_words), work, options.processes)
    print(
        f"{len(corpus.texts)} clips, {corpus.starts[-1] / 360_000:.1f} h, "
        f"{len(voices)} voices, {len(WORDS)} words; training on {device}",
        flush=True,
    )
    model = train(
        corpus,
        Schedule(options.steps, options.rate, options.frames),
        shape=Shape(),
        seed=options.seed,
        device=device,
        state_file=work / "zipformer-state.pt",
        development_wer=development_wer,
        seconds=options.seconds,
    )
    print(f"development {development_wer(model)}", flush=True)
    weights = {name: value.cpu() for name, value in model.state_dict().items() if not name.startswith("heads.")}
    torch.save(weights, work / "zipformer-weights.pt")
    return work / "zipformer-weights.pt"


def write_shipped(weights: Path, folder: Path) -> None:
    """Write what sherpa-onnx reads from trained weights."""
    model = Transducer(Shape(), len(vocabulary()))
    model.load_state_dict(torch.load(weights, weights_only=True))
    export(model.eval(), vocabulary(), folder)


def judge(folder: Path, speech: Path, *, verbose: bool = False) -> bool:
    """Print what sherpa-onnx makes of the shipped list with these files; tell whether that passes."""
    from sherpa_onnx import OnlineRecognizer

    began = time.monotonic()
    encoder, decoder, joiner, tokens = (str(folder / part) for part in PARTS)
    recognizer = OnlineRecognizer.from_transducer(tokens, encoder, decoder, joiner, num_threads=1)  # more would spin
    rows = read_manifest(speech / "evaluation.jsonl")
    texts: list[str] = []
    for first in range(0, len(rows), 32):  # clips side by side: one run of the encoder is a chunk of each
        streams = [recognizer.create_stream() for _ in rows[first : first + 32]]
        for stream, row in zip(streams, rows[first:], strict=False):
            stream.accept_waveform(16_000, read_clip(speech / "evaluation.jsonl", row))
            stream.accept_waveform(16_000, np.zeros(16_000, np.float32))
            stream.input_finished()
        while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
            recognizer.decode_streams(ready)
        texts += [recognizer.get_result(stream) for stream in streams]
    if verbose:
        for row, text in zip(rows, texts, strict=True):
            if word_errors([row["text"]], [text]).wer:
                print(f"{row['id']} {row['speaker']}: {row['text']!r} heard as {text.strip()!r}")
    errors = word_errors([row["text"] for row in rows], texts)
    n_bytes = sum((folder / part).stat().st_size for part in PARTS)
    seconds = time.monotonic() - began
    print(f"evaluation {errors}; at most {100 * MAX_WER:.0f} % passes ({seconds:.0f} s); {n_bytes} bytes")
    return errors.wer <= MAX_WER and n_bytes <= MAX_BYTES


def main() -> int:
    """Make or check the shipped recogniser and return 0 when it passes."""
    options = parse_arguments()
    if "OMP_WAIT_POLICY" not in os.environ:  # as for whisper-nano: threads that spin slow all others
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    shipped, speech = options.out / NAME, Path(__file__).parent / SPEECH
    if options.check:
        return 0 if judge(shipped, speech, verbose=True) else 1
    if options.weights is None and not have_espeak():
        print("espeak-ng is not on the path: install it, for example `apt install espeak-ng`")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out, prefix=f".{NAME}-") as scratch:
        folder = Path(scratch) / NAME
        work = options.work or Path(scratch) / "corpus"
        work.mkdir(parents=True, exist_ok=True)
        write_shipped(options.weights or learn(options, work), folder)
        if not judge(folder, speech):
            print(f"it does not pass: {shipped} is left as it was")
            return 1
        for manifest in ("calibration.jsonl", "evaluation.jsonl"):
            (folder / manifest).symlink_to(Path("..") / SPEECH / manifest)
        if shipped.exists():
            shutil.rmtree(shipped)
        folder.rename(shipped)
    return 0


if __name__ == "__main__":
    sys.exit(main())
