"""Long form against stock: `--long chunk` on the float graphs and whisper.transcribe, on the same files of 3 minutes.

    .venv/bin/python benchmarks/long_form.py [--files N] [--window S] [--show]

Each file has LibriSpeech evaluation clips of one speaker in a seeded order, with 0.3 to 0.8 s of the clips' noise floor
between them. Speech comes from NIGHTJAR_DATA, else ../shared/data; the checkpoint from NIGHTJAR_MODELS, else from
where ../shared/models/fetch puts it. Exits with 1 if chunking loses more than a point of corpus WER to
whisper.transcribe, with 2 if speech or checkpoint is absent.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from nightjar.files import digest_file
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.recipe import Recipe
from nightjar.plugins.registry import plugin
from nightjar.plugins.target import make_options, session_of
from nightjar.scoring.score import Score, score
from nightjar.scoring.wer import corpus_wer
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip, load_speech, speech_digest
from nightjar.store.artifact import Artifact, Source, Store
from tasks.build import build
from tasks.evaluate import evaluate
from tasks.export import export
from tasks.hypotheses import EvaluateOptions, read_hypotheses
from tasks.stage import Run, running
from tasks.stock import stock

SHARED = Path(__file__).resolve().parents[2] / "shared"
SPEECH = Path(os.environ.get("NIGHTJAR_DATA") or SHARED / "data") / "librispeech" / "evaluation.jsonl"
CHECKPOINT = Path(os.environ.get("NIGHTJAR_MODELS") or Path.home() / ".cache" / "nightjar-models") / "tiny.en.pt"
FILE_S = 180.0
PAUSE_S = (0.3, 0.8)
MOST_POINTS = 1.0


def write_files(clips: Sequence[Clip], count: int, folder: Path) -> Path:
    """Write `count` files of at most FILE_S, one speaker each in turn, and their manifest; return the manifest."""
    speakers = sorted({clip.speaker or "" for clip in clips})
    lines = []
    for number in range(count):
        rng = np.random.default_rng(number)
        speaker = speakers[number % len(speakers)]
        own = [clip for clip in clips if clip.speaker == speaker]
        wave, texts = join([own[i] for i in rng.permutation(len(own))], rng)
        name = f"long{number:02d}-{speaker}"
        soundfile.write(folder / f"{name}.flac", wave, 16000)
        line = {"audio_filepath": f"{name}.flac", "text": " ".join(texts), "speaker": speaker, "id": name}
        lines.append(json.dumps(line) + "\n")
    manifest = folder / "long.jsonl"
    manifest.write_text("".join(lines), encoding="utf-8")
    return manifest


def join(clips: Sequence[Clip], rng: np.random.Generator) -> tuple[NDArray[np.int16], list[str]]:
    """Join the clips that fit into FILE_S, with pauses between them; return the wave and the texts."""
    parts: list[NDArray[np.int16]] = []
    texts = []
    room_s = FILE_S
    for clip in clips:
        pause_s = rng.uniform(*PAUSE_S)
        if clip.duration_s + pause_s > room_s:
            continue
        wave = load_audio(clip.audio)
        # not zeros: no recording is that quiet between sentences, and zeros are too easy to find
        floor = np.percentile(wave[: len(wave) // 320 * 320].reshape(-1, 320).std(axis=1), 5)
        pause = np.round(rng.standard_normal(round(pause_s * 16000)) * floor).astype(np.int16)
        parts += [wave, pause]
        texts.append(clip.text)
        room_s -= clip.duration_s + pause_s
    return np.concatenate(parts[:-1]), texts


def transcribe(speech: Path, store: Store, window_s: float) -> dict[str, Score]:
    """Run the float graphs with `chunk` and stock's long form, by the stages of a port."""
    target, options = plugin("targets", "onnx"), EvaluateOptions(long="chunk")
    decode, board = plugin("models", "whisper", "decode"), board_of(target, "local")
    checkpoint = Source(path=CHECKPOINT, sha256=digest_file(CHECKPOINT))
    source = Source(path=speech, sha256=speech_digest(load_speech(speech)))
    heard: dict[str, Artifact] = {}
    with running(Run(store)):
        graphs = export(
            checkpoint=checkpoint,
            model=plugin("models", "whisper", "export"),
            recipe=Recipe(window_s=window_s, decoder="cached"),
            clamp=False,
        )
        binary = build(graphs=graphs, calibration=None, target=target, options=make_options(target, "fp"))
        heard["chunk"] = evaluate(
            binary=binary,
            speech=source,
            session=session_of(decode, target, board),
            words=plugin("models", "whisper", "tokens"),
            board=board,
            reference=None,
            options=options,
        )
        heard["stock"] = stock(
            checkpoint=checkpoint, speech=source, model=plugin("models", "whisper", "stock"), options=options
        )
    clips = load_speech(speech)
    return {name: score(name, "host", clips, read_hypotheses(store.path(made))) for name, made in heard.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the files, transcribe them both ways, print corpus WER and the difference."""
    parser = argparse.ArgumentParser(description="--long chunk against whisper.transcribe")
    parser.add_argument("--files", type=int, default=10, metavar="N", help="files of 3 minutes (10)")
    parser.add_argument("--window", type=float, default=30.0, metavar="S", help="window of the float graphs (30)")
    parser.add_argument("--show", action="store_true", help="print each file's counts as well")
    asked = parser.parse_args(arguments)
    absent = [str(path) for path in (SPEECH, CHECKPOINT) if not path.exists()]
    if absent:
        print(f"absent: {', '.join(absent)}; set NIGHTJAR_DATA and NIGHTJAR_MODELS", file=sys.stderr)
        return 2
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        speech = write_files(load_speech(SPEECH), asked.files, Path(temporary))
        scores = transcribe(speech, Store(Path(temporary) / "artifacts"), asked.window)
    chunk, stock_ = scores["chunk"], scores["stock"]
    total_s = sum(clip.duration_s for clip in chunk.clips)
    print(f"{CHECKPOINT.stem}, {len(chunk.clips)} files, {total_s:.0f} s, {chunk.counts.reference} words, tier host")
    print(f"{'':16}{'WER %':>8}{'S':>6}{'D':>6}{'I':>6}{'loops':>7}{'capped':>8}{'rtf':>7}")
    for name, said in (("chunk", chunk), ("stock transcribe", stock_)):
        _print_row(name, said)
    pairs = list(zip(chunk.clips, stock_.clips, strict=True))
    if asked.show:
        for pair in pairs:
            errors = [f"{clip.counts.errors}{' (loops)' if clip.looping else ''}" for clip in pair]
            print(f"{pair[0].id}: {errors[0]} against {errors[1]} of {pair[0].counts.reference}")
    if steady := [pair for pair in pairs if not (pair[0].looping or pair[1].looping)]:
        rates = [corpus_wer(clip.counts for clip in side) for side in zip(*steady, strict=True)]
        print(f"the {len(steady)} files in which neither loops: chunk {rates[0]:.2f}, stock {rates[1]:.2f}")
    difference = chunk.wer - stock_.wer
    verdict = "within" if difference <= MOST_POINTS else "ABOVE"
    print(
        f"chunk − stock: {difference:+.2f} points, {verdict} {MOST_POINTS:g}; window {asked.window:g} s, "
        f"{time.monotonic() - start:.0f} s in all"
    )
    return int(difference > MOST_POINTS)


def _print_row(name: str, said: Score) -> None:
    counts = said.counts
    rtf = said.rtf["total"].p50 if said.rtf else float("nan")
    print(
        f"{name:16}{said.wer:8.2f}{counts.substitutions:6}{counts.deletions:6}{counts.insertions:6}"
        f"{said.looping:7}{said.capped:8}{rtf:7.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
