"""Compare exports with the stock recogniser: openai-whisper, TorchScript and ONNX on the same clips."""

import json
from typing import Any

from prefect import flow

from flows.evaluation import evaluate_reference
from flows.prepare import prepare_graphs, recipe_for
from flows.transcribe import audio_source
from nightjar.files import storage_errors, write_atomic
from nightjar.plugins.registry import plugin
from nightjar.plugins.resolve import model_family
from nightjar.request import CompareRequest
from tasks.hypotheses import EvaluateOptions, read_hypotheses
from tasks.stage import current_or_new_run
from tasks.stock import stock


@flow(name="compare")
def compare(request: CompareRequest) -> dict[str, Any]:
    """Transcribe the clips three times; write a JSON per clip (text, token ids, seconds) and `summary.json`."""
    with current_or_new_run(()) as run:
        family = model_family(request)
        speeches = [audio_source(path) for path in request.files]
        prepared = {}
        for name in ("torchscript", "onnx"):
            target = plugin("targets", name)
            recipe = recipe_for(request, target.load().recipe(family))
            prepared[name] = prepare_graphs(request, family, target, None, recipe, label=name)
        checkpoint, stock_module = prepared["onnx"].checkpoint, plugin("models", family, "stock")
        options = EvaluateOptions(language=request.language, task=request.task or "transcribe", transcribed=False)
        by_clip: dict[str, dict[str, Any]] = {}
        for speech in speeches:
            hypotheses = {
                "openai-whisper": stock(checkpoint=checkpoint, speech=speech, model=stock_module, options=options)
            }
            for name, graphs in prepared.items():
                hypotheses[name] = evaluate_reference(graphs, speech=speech, options=options, label=name)
            for name, artifact in hypotheses.items():
                for line in read_hypotheses(run.store.path(artifact)):
                    result = {field: line.get(field) for field in ("text", "language", "tokens")}
                    by_clip.setdefault(line["id"], {})[name] = result | {"seconds": line["seconds"]["total"]}
    return _write(request, by_clip)


def _write(request: CompareRequest, by_clip: dict[str, dict[str, Any]]) -> dict[str, Any]:
    results: list[dict[str, Any]] = [
        {"id": clip, "equal": len({tuple(line["tokens"]) for line in by.values()}) == 1, "by": by}
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
