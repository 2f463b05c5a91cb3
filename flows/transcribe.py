"""Print what a port hears: build its binary, or take it from the store, and run it on a board."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.evaluation import hear
from flows.port import built, calibrated, prepared
from nightjar.errors import BadAudio
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.resolve import speech_source
from nightjar.request import TranscribeRequest
from nightjar.speech.manifest import load_speech, speech_digest
from nightjar.store.artifact import Source
from tasks.hypotheses import EvaluateOptions, read_hypotheses
from tasks.stage import current_or_new_run


@flow(name="transcribe", flow_run_name="transcribe-{request.model}-{request.target}-{request.precision}")
def transcribe(request: TranscribeRequest) -> dict[str, Any]:
    """Export, calibrate where the precision wants it, build, and let the binary hear every file, each cached."""
    with current_or_new_run(request.refresh, request.board_wait) as run:
        audio = {path: _audio_source(path) for path in request.files}
        made = prepared(request, _calibration_speech)
        board = board_of(made.target, request.board)
        calibration = calibrated(request, made) if request.precision != "fp" else None
        binary, _ = built(request, made, calibration)
        heard: list[dict[str, Any]] = []
        for path, speech in audio.items():
            options = EvaluateOptions(language=request.language, long=request.long, transcribed=False)
            evaluated = hear(
                made.family, made.target, board, binary=binary, speech=speech, options=options, label=path.name
            )
            lines = [line for line in read_hypotheses(run.store.path(evaluated)) if not line["probe"]]
            heard += [_described(path, line) for line in lines]
        return {
            "model": request.model,
            "target": request.target,
            "tier": board.tier,
            "precision": request.precision,
            "language": request.language,
            "window_s": float(made.graphs.meta["window_s"]),
            "files": heard,
            "stages": [
                {"name": each.name, "seconds": each.seconds, "cached": each.cached, "why": each.why}
                for each in run.outcomes
            ],
        }


def _calibration_speech(request: TranscribeRequest) -> tuple[Source | None, None]:
    return (speech_source(request, "calibration") if request.precision != "fp" else None), None


def _audio_source(path: Path) -> Source:
    if not path.exists():
        raise BadAudio(f"no file {path}: give audio files, manifests or folders")
    return Source(path=path.resolve(), sha256=speech_digest(load_speech(path, transcribed=False)))


def _described(path: Path, line: dict[str, Any]) -> dict[str, Any]:
    """Say what was heard; a clip of a folder or manifest is called by both."""
    listed = path.is_dir() or path.suffix.lower() in (".jsonl", ".json")
    return {
        "file": f"{path.as_posix()}#{line['id']}" if listed else path.as_posix(),
        "text": line["text"],
        "tokens": line["tokens"],
        "seconds": line["seconds"],
        "audio_s": line["audio_s"],
    }
