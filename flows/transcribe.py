"""Transcribe audio files: build a port's binary, or take it from the store, and run it on a board."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.evaluation import evaluate_binary
from flows.port import build_binary, make_calibration
from flows.prepare import prepare
from nightjar.errors import BadAudio, BadOptions
from nightjar.plugins.resolve import model_family
from nightjar.request import TranscribeRequest, as_port
from nightjar.speech.manifest import load_speech, speech_digest
from nightjar.store.artifact import Source
from tasks.hypotheses import EvaluateOptions, read_hypotheses
from tasks.stage import current_or_new_run


@flow(name="transcribe", flow_run_name="transcribe-{request.model}-{request.target}-{request.precision}")
def transcribe(request: TranscribeRequest) -> dict[str, Any]:
    """Export, calibrate where the precision needs it, build, and transcribe every file; each step is cached."""
    with current_or_new_run(request.refresh, request.board_wait) as run:
        if request.format in ("srt", "vtt"):
            request = request.model_copy(update={"timestamps": True})
        model_family(request)  # refuses what the family does not have
        timestamps = bool(request.timestamps)
        if timestamps and request.decoder == "window":
            raise BadOptions("rknn_model_zoo's loop has no timestamps: remove --decoder window, or --timestamps")
        options = EvaluateOptions(
            language=request.language, timestamps=timestamps, long=request.long, transcribed=False
        )
        audio = {path: audio_source(path) for path in request.files}
        port = as_port(request)
        prepared = prepare(port, scored=False)
        calibration = make_calibration(port, prepared) if request.precision != "fp" else None
        binary, _ = build_binary(port, prepared, calibration)
        transcripts: list[dict[str, Any]] = []
        for path, speech in audio.items():
            hypotheses = evaluate_binary(prepared, binary, speech=speech, options=options, label=path.name)
            listed = path.is_dir() or path.suffix.lower() in (".jsonl", ".json")  # its clips are named by both
            for line in read_hypotheses(run.store.path(hypotheses)):
                name = f"{path.as_posix()}#{line['id']}" if listed else path.as_posix()
                wanted = ("text", "language", "segments", "tokens", "seconds", "audio_s")
                figures = {key: line[key] for key in wanted if key in line}
                transcripts.append({"file": name, **figures})
        return {
            "model": request.model,
            "target": request.target,
            "tier": prepared.board.tier,
            "precision": request.precision,
            "language": request.language,
            "window_s": float(prepared.graphs.meta["window_s"]),
            "format": request.format,
            "files": transcripts,
            "stages": [
                {"name": each.name, "seconds": each.seconds, "cached": each.cached, "why": each.why}
                for each in run.outcomes
            ],
        }


def audio_source(path: Path) -> Source:
    """Return audio files, a manifest or a folder by content; raises BadAudio if there is none."""
    if not path.exists():
        raise BadAudio(f"no file {path}: give audio files, manifests or folders")
    return Source(path=path.resolve(), sha256=speech_digest(load_speech(path, transcribed=False)))
