"""Compare exports with the stock recogniser: openai-whisper, TorchScript and ONNX on the same clips."""

import json
from typing import Any

from prefect import flow

from flows.prepare import recipe_for
from nightjar.files import storage_errors, write_atomic
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from nightjar.plugins.resolve import checkpoint_source, model_family
from nightjar.plugins.target import make_options, session_of
from nightjar.request import CompareRequest, RecipeOptions
from nightjar.speech.manifest import load_speech, speech_digest
from nightjar.store.artifact import Artifact, Source
from tasks.build import build
from tasks.evaluate import evaluate
from tasks.export import export
from tasks.hypotheses import EvaluateOptions, read_hypotheses
from tasks.stage import current_or_new_run
from tasks.stock import stock


@flow(name="compare")
def compare(request: CompareRequest) -> dict[str, Any]:
    """Transcribe the clips three times; write a JSON per clip (text, token ids, seconds) and `summary.json`."""
    with current_or_new_run(()) as run:
        family = model_family(request)
        checkpoint = checkpoint_source(request, family)
        modules = {name: plugin("models", family, name) for name in ("export", "decode", "tokens", "stock")}
        options = EvaluateOptions(language=request.language, task=request.task or "transcribe", transcribed=False)
        by_clip: dict[str, dict[str, Any]] = {}
        for path in request.files:
            speech = Source(path=path.resolve(), sha256=speech_digest(load_speech(path, transcribed=False)))
            hypotheses: dict[str, Artifact] = {
                "openai-whisper": stock(checkpoint=checkpoint, speech=speech, model=modules["stock"], options=options)
            }
            for name in ("torchscript", "onnx"):
                target = plugin("targets", name)
                board = board_of(target, "local")
                recipe = recipe_for(RecipeOptions(window=request.window), target.load().recipe(family))
                recipe = recipe.model_copy(update={"task": request.task or "transcribe"})
                graphs = export(
                    checkpoint=checkpoint,
                    model=modules["export"],
                    recipe=recipe,
                    clamp=request.window is None,
                    label=name,
                )
                options_fp = make_options(target, "fp")
                binary = build(graphs=graphs, calibration=None, target=target, options=options_fp, label=name)
                hypotheses[name] = evaluate(
                    binary=binary,
                    speech=speech,
                    session=session_of(modules["decode"], target, board),
                    words=modules["tokens"],
                    board=board,
                    reference=None,
                    options=options,
                    label=name,
                )
            for name, artifact in hypotheses.items():
                for line in read_hypotheses(run.store.path(artifact)):
                    if not line["probe"]:
                        by_clip.setdefault(line["id"], {})[name] = line
    return _write(request, by_clip)


def _write(request: CompareRequest, by_clip: dict[str, dict[str, Any]]) -> dict[str, Any]:
    results: list[dict[str, Any]] = [
        {
            "id": clip,
            "equal": len({tuple(line["tokens"]) for line in by.values()}) == 1,
            "by": {
                name: {
                    "text": line["text"],
                    "language": line.get("language", request.language),
                    "tokens": line["tokens"],
                    "seconds": line["seconds"]["total"],
                }
                for name, line in by.items()
            },
        }
        for clip, by in sorted(by_clip.items())
    ]
    summary: dict[str, Any] = {
        "model": request.model,
        "language": request.language,
        "tier": "host",
        "clips": len(results),
        "equal": sum(result["equal"] for result in results),
        "seconds": {
            name: round(sum(result["by"][name]["seconds"] for result in results), 3)
            for name in ("openai-whisper", "torchscript", "onnx")
        },
        "out": request.out.as_posix(),
    }
    with storage_errors():
        for result in results:
            write_atomic(request.out / f"{result['id']}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        write_atomic(request.out / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary | {"results": results}
