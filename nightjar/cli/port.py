"""port, evaluate, transcribe, attribute, lint, compare: one row each. reproduce: a port again."""

import argparse
from pathlib import Path
from typing import Any

from nightjar.cli.command import FlowCommand, add_command, add_flow
from nightjar.cli.console import Screen, show_attribution, show_comparison, show_results, show_transcripts
from nightjar.plugins.target import tier_of
from nightjar.request import (
    AttributeRequest,
    CompareRequest,
    EvaluateRequest,
    LintRequest,
    PortRequest,
    TranscribeRequest,
)


def verdict_code(results: dict[str, Any]) -> int:
    """Return the exit code of a verdict."""
    return 0 if results["verdict"] == "PASS" else 1


def _port_title(request: PortRequest | TranscribeRequest) -> str:
    return f"{request.model} → {request.target}, {request.precision}"


COMMANDS = (
    FlowCommand(
        "port",
        "port one model to one target: export, calibrate, build, evaluate, judge, report",
        PortRequest,
        "flows.port:port",
        _port_title,
        show_results,
        verdict_code,
    ),
    FlowCommand(
        "evaluate",
        "score files made elsewhere without building, as port scores its own, or a board's own program",
        EvaluateRequest,
        "flows.evaluate:evaluate_files",
        lambda request: f"{request.model} on {request.target}, {len(request.files)} files as given",
        show_results,
        verdict_code,
    ),
    FlowCommand(
        "transcribe",
        "text from a port's binary, built if need be",
        TranscribeRequest,
        "flows.transcribe:transcribe",
        lambda request: f"{_port_title(request)}, tier {tier_of(request.target, request.board)}",
        show_transcripts,
    ),
    FlowCommand(
        "attribute",
        "every encoder with every decoder: WER and SNR per pair, and the part that a loss comes from",
        AttributeRequest,
        "flows.attribute:attribute",
        lambda request: f"{request.model} → {request.target}: {', '.join(request.precisions)}",
        show_attribution,
    ),
    FlowCommand(
        "lint",
        "what a target refuses in a model, and what its recipe does about it",
        LintRequest,
        "flows.lint:lint_model",
        lambda request: f"{request.model} → {request.target}",
        lambda screen, results: screen.render("lint.txt", **results),
        lambda results: 1 if any(finding["level"] == "refuse" for finding in results["recipe"]) else 0,
    ),
    FlowCommand(
        "compare",
        "stock Whisper, TorchScript and ONNX on given clips: text, token ids, seconds",
        CompareRequest,
        "flows.compare:compare",
        lambda request: f"{request.model}: openai-whisper, TorchScript, ONNX",
        show_comparison,
        lambda results: 0 if results["equal"] == results["clips"] else 1,
    ),
)


def add(commands: Any) -> None:
    """Add them to the command line."""
    for row in COMMANDS:
        parser = add_flow(commands, row)
        if row.name == "port":
            parser.add_argument("--plan", action="store_true", help="print what would run and why, and run nothing")
    reproduce = add_command(commands, "reproduce", "run a report's request again, and compare", _reproduce)
    reproduce.add_argument("report", type=Path, help="report.html or the results.json beside it")


def _reproduce(arguments: argparse.Namespace) -> int:
    from nightjar.report.reproduce import differences, read_report

    before, request = read_report(arguments.report)
    screen = Screen()
    screen.say(f"[bold]reproduce[/bold] {before['command']}")
    from flows.evaluate import evaluate_files
    from flows.port import port
    from flows.start import run_flow

    flow = port if isinstance(request, PortRequest) else evaluate_files
    results, _ = run_flow(flow, request.model_copy(update={"refresh": ()}), screen)
    show_results(screen, results)
    figures, causes = differences(before, results)
    for line in causes:
        screen.say(f"  [dim]{line}[/dim]")
    for line in figures:
        screen.say(f"  [red]differs[/red]   {line}")
    screen.say("not reproduced" if figures else "reproduced: the same scores and verdict")
    return 1 if figures else 0
