"""port, evaluate, transcribe, attribute, lint, compare, reproduce: each is a flow."""

import argparse
from pathlib import Path
from typing import Any

from nightjar.cli.command import EXIT_CODES, add_request, write_json
from nightjar.cli.flags import parse_options
from nightjar.request import AttributeRequest, EvaluateRequest, LintRequest, PortRequest, TranscribeRequest


def add(commands: Any) -> None:
    """Add them to the command line."""
    port = add_request(commands, "port", "the whole graph for one model and one target", PortRequest, _port)
    port.add_argument("--plan", action="store_true", help="print what would run and why, and run nothing")
    said = "score files made elsewhere without building, as port scores its own, or a board's own program"
    add_request(commands, "evaluate", said, EvaluateRequest, _evaluate)
    add_request(commands, "transcribe", "text from a port's binary, built if need be", TranscribeRequest, _transcribe)
    said = "every encoder with every decoder: WER and SNR per pair, and whose a loss is"
    add_request(commands, "attribute", said, AttributeRequest, _attribute)

    said = "what a target will refuse in a model, and what its recipe does about it"
    add_request(commands, "lint", said, LintRequest, _lint)

    compare = commands.add_parser(
        "compare", help="stock Whisper, TorchScript and ONNX on given clips: text, token ids, seconds"
    )
    compare.add_argument("speech", type=Path, nargs="+", help="audio files, manifests or folders")
    compare.add_argument("--model", default="whisper-nano", help="as for port")
    compare.add_argument("--checkpoint", type=Path, help="as for port")
    compare.add_argument("--language", default="en", help="language spoken (default: en)")
    compare.add_argument("--window", type=float, help="audio window in seconds (default: the model's, at most 30)")
    compare.add_argument("--out", type=Path, default=Path("reports/compare"), help="folder for the JSONs")
    compare.set_defaults(command=_compare)

    reproduce = commands.add_parser("reproduce", help="run again what a report says, and compare", epilog=EXIT_CODES)
    reproduce.add_argument("report", type=Path, help="report.html or the results.json beside it")
    reproduce.set_defaults(command=_reproduce)


def _port(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen, show_plan

    request = parse_options(arguments, PortRequest)
    screen = Screen()
    screen.say(f"[bold]port[/bold] {request.model} → {request.target}, {request.precision}")
    from flows.port import port  # Prefect takes a second to import, so the line above comes first
    from flows.start import run_flow

    results, run = run_flow(port, request, screen, refresh=request.refresh, plan=arguments.plan)
    if arguments.plan:
        show_plan(screen, run.outcomes)
        return 0
    return _judged(arguments, screen, results)


def _evaluate(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen

    request = parse_options(arguments, EvaluateRequest)
    screen = Screen()
    screen.say(f"[bold]evaluate[/bold] {request.model} on {request.target}, {len(request.files)} files as given")
    from flows.evaluate import evaluate_files
    from flows.start import run_flow

    results, _ = run_flow(evaluate_files, request, screen, refresh=request.refresh)
    return _judged(arguments, screen, results)


def _judged(arguments: argparse.Namespace, screen: Any, results: dict[str, Any]) -> int:
    from nightjar.cli.console import show_results

    show_results(screen, results)
    write_json(arguments, results)
    return 0 if results["verdict"] == "PASS" else 1


def _transcribe(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen, show_transcripts
    from nightjar.plugins.board_choice import board_of
    from nightjar.plugins.target import target_of

    request = parse_options(arguments, TranscribeRequest)
    tier = board_of(target_of(request.target, request.board), request.board).tier
    screen = Screen()
    screen.say(f"[bold]transcribe[/bold] {request.model} → {request.target}, {request.precision}, tier {tier}")
    from flows.start import run_flow
    from flows.transcribe import transcribe

    results, _ = run_flow(transcribe, request, screen, refresh=request.refresh)
    show_transcripts(screen, results)
    write_json(arguments, results)
    return 0


def _attribute(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen, show_attribution

    request = parse_options(arguments, AttributeRequest)
    screen = Screen()
    screen.say(f"[bold]attribute[/bold] {request.model} → {request.target}: {', '.join(request.precisions)}")
    from flows.attribute import attribute
    from flows.start import run_flow

    results, _ = run_flow(attribute, request, screen, refresh=request.refresh)
    show_attribution(screen, results)
    write_json(arguments, results)
    return 0


def _lint(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen, show_lint

    request = parse_options(arguments, LintRequest)
    screen = Screen()
    screen.say(f"[bold]lint[/bold] {request.model} → {request.target}")
    from flows.lint import lint_model
    from flows.start import run_flow

    results, _ = run_flow(lint_model, request, screen, refresh=request.refresh)
    show_lint(screen, results)
    write_json(arguments, results)
    return 1 if any(finding["level"] == "refuse" for finding in results["recipe"]) else 0


def _compare(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen, show_comparison

    screen = Screen()
    screen.say(f"[bold]compare[/bold] {arguments.model}: openai-whisper, TorchScript, ONNX")
    from flows.compare import CompareRequest, compare
    from flows.start import run_flow

    given = {name: getattr(arguments, name) for name in ("model", "checkpoint", "language", "window", "out")}
    request = CompareRequest(speech=tuple(arguments.speech), **given)
    results, _ = run_flow(compare, request, screen)
    show_comparison(screen, results)
    return 0 if results["equal"] == results["clips"] else 1


def _reproduce(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen, show_results
    from nightjar.report.reproduce import differences, read_report

    before, request = read_report(arguments.report)
    screen = Screen()
    screen.say(f"[bold]reproduce[/bold] {before['command']}")
    from flows.evaluate import evaluate_files
    from flows.port import port
    from flows.start import run_flow

    results, _ = run_flow(evaluate_files if hasattr(request, "files") else port, request, screen)
    show_results(screen, results)
    differing, changed = differences(before, results)
    for line in changed:
        screen.say(f"  [dim]{line}[/dim]")
    for line in differing:
        screen.say(f"  [red]differs[/red]   {line}")
    screen.say("not reproduced" if differing else "reproduced: the same scores and verdict")
    return 1 if differing else 0
