"""`nightjar …`: the command line; the one module here that reaches flows, and only when a command needs them."""

import argparse
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nightjar.errors import NightjarError, StoreBroken
from nightjar.flags import add_options, parse_options

EXIT_CODES = """exit codes: 0 pass; 1 fail or undecided; 2 bad input; 3 a toolchain, board or server is missing;
4 a tool or board broke on the way (can be run again); 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code; every explained failure is one line on stderr."""
    gc.disable()  # importing Prefect makes a million objects that stay; run_flow goes on from there
    arguments = _parser().parse_args(argv)
    # So that what our code logs appears with a flow run in the Prefect UI; read when Prefect is imported.
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "nightjar,models,targets,tasks")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped worker ends its session in order too
    try:
        code: int = arguments.command(arguments)
    except KeyboardInterrupt:
        print("nightjar: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except NightjarError as error:
        if arguments.debug:
            raise
        print(f"nightjar: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if arguments.debug:
            raise
        print(f"nightjar: {error}; mend it and run the same command again", file=sys.stderr)
        return StoreBroken.exit_code
    return code


def _parser() -> argparse.ArgumentParser:
    from nightjar.request import (
        AttributeRequest,
        DeployRequest,
        EvaluateRequest,
        HarvestRequest,
        ImportRequest,
        PortRequest,
        TranscribeRequest,
    )
    from nightjar.serve import add_arguments, replaced

    parser = argparse.ArgumentParser(
        prog="nightjar",
        description="Put speech recognisers on edge NPUs, and say with numbers whether they still understand speech.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks instead of one line")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    port = _add_command(commands, "port", "the whole graph for one model and one target", PortRequest, _port)
    port.add_argument("--plan", action="store_true", help="print what would run and why, and run nothing")
    said = "score files made elsewhere without building, as port scores its own, or a board's own program"
    _add_command(commands, "evaluate", said, EvaluateRequest, _evaluate)
    _add_command(commands, "transcribe", "text from a port's binary, built if need be", TranscribeRequest, _transcribe)
    harvest = commands.add_parser(
        "harvest", help="encoder outputs of much speech as a dataset, for distillation", epilog=EXIT_CODES
    )
    add_options(harvest, HarvestRequest)
    harvest.set_defaults(command=_harvest)

    calibrate = commands.add_parser("calibrate", help="calibration sets made of other tools' files")
    calibrating = calibrate.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_command(calibrating, "import-dumps", "enc_*.bin dumps to a calibration set", ImportRequest, _import_dumps)
    said = "every encoder with every decoder: WER and SNR per pair, and whose a loss is"
    _add_command(commands, "attribute", said, AttributeRequest, _attribute)
    deploy = _add_command(commands, "deploy", "a port to a board, canary first", DeployRequest, _deploy)
    deploy.add_argument("--list", action="store_true", help="list the board's releases, and do nothing")
    rollback = commands.add_parser("rollback", help="the release before the current one", epilog=EXIT_CODES)
    rollback.add_argument("--board", required=True, help="ssh alias of the board")
    rollback.add_argument("--name", default="", help="which deployment; default: the only one there is")
    rollback.add_argument("--to", default="", metavar="ID", help="an earlier release than the one before")
    _add_json(rollback, _rollback)

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

    toolchain = commands.add_parser("toolchain", help="vendor SDKs, each in an environment of its own")
    toolchains = toolchain.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for word, help_text in (("install", "make and probe a target's SDK"), ("status", "look at it and probe it")):
        one = toolchains.add_parser(word, help=help_text, epilog=EXIT_CODES)
        one.add_argument("target", help="the target it belongs to")
        one.set_defaults(command=_toolchain, word=word)

    board = commands.add_parser("board", help="boards behind ssh")
    boards = board.add_subparsers(title="commands", required=True, metavar="COMMAND")
    look = boards.add_parser("check", help="can it be reached, and is it fit for a run", epilog=EXIT_CODES)
    look.add_argument("alias", help="an alias of ~/.ssh/config or boards.toml, or env for BOARD_IP, …")
    look.add_argument("--target", help="the target to look at (default: that of boards.toml, else all)")
    look.set_defaults(command=_board_check)
    offer = boards.add_parser(
        "serve", help="on a board: offer a binary's encoder to hosts, over gRPC", epilog=EXIT_CODES
    )
    add_arguments(offer)
    offer.set_defaults(command=replaced)

    for kind in ("targets", "models"):
        listing = commands.add_parser(kind, help=f"list the {kind} there are")
        listing.set_defaults(command=_listing(kind))
    doctor = commands.add_parser("doctor", help="check this machine: environment, store, server, targets, models")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_command(
    commands: Any, name: str, said: str, request: type[Any], command: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add a command whose flags are a request's."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=said, epilog=EXIT_CODES)
    add_options(parser, request, getattr(request, "FLAGS", ()))
    _add_json(parser, command)
    return parser


def _add_json(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("--json", type=Path, metavar="F", help="write the results here too")
    parser.set_defaults(command=command)


def _port(arguments: argparse.Namespace) -> int:
    from nightjar.request import PortRequest
    from nightjar.show import Screen, show_plan

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
    from nightjar.request import EvaluateRequest
    from nightjar.show import Screen

    request = parse_options(arguments, EvaluateRequest)
    screen = Screen()
    screen.say(f"[bold]evaluate[/bold] {request.model} on {request.target}, {len(request.files)} files as given")
    from flows.evaluate import evaluate_files
    from flows.start import run_flow

    results, _ = run_flow(evaluate_files, request, screen, refresh=request.refresh)
    return _judged(arguments, screen, results)


def _judged(arguments: argparse.Namespace, screen: Any, results: dict[str, Any]) -> int:
    from nightjar.show import show_results

    show_results(screen, results)
    _write_json(arguments, results)
    return 0 if results["verdict"] == "PASS" else 1


def _transcribe(arguments: argparse.Namespace) -> int:
    from nightjar.plugins import plugin
    from nightjar.request import TranscribeRequest
    from nightjar.show import Screen, show_transcripts
    from nightjar.target import board_of

    request = parse_options(arguments, TranscribeRequest)
    tier = board_of(plugin("targets", request.target), request.board).tier
    screen = Screen()
    screen.say(f"[bold]transcribe[/bold] {request.model} → {request.target}, {request.precision}, tier {tier}")
    from flows.start import run_flow
    from flows.transcribe import transcribe

    results, _ = run_flow(transcribe, request, screen, refresh=request.refresh)
    show_transcripts(screen, results)
    _write_json(arguments, results)
    return 0


def _attribute(arguments: argparse.Namespace) -> int:
    from nightjar.request import AttributeRequest
    from nightjar.show import Screen, show_attribution

    request = parse_options(arguments, AttributeRequest)
    screen = Screen()
    screen.say(f"[bold]attribute[/bold] {request.model} → {request.target}: {', '.join(request.precisions)}")
    from flows.attribute import attribute
    from flows.start import run_flow

    results, _ = run_flow(attribute, request, screen, refresh=request.refresh)
    show_attribution(screen, results)
    _write_json(arguments, results)
    return 0


def _harvest(arguments: argparse.Namespace) -> int:
    from nightjar.bulk import harvest_speech
    from nightjar.progress import listening
    from nightjar.request import HarvestRequest
    from nightjar.show import Screen, show_harvest

    request = parse_options(arguments, HarvestRequest)
    screen = Screen()
    screen.say(f"[bold]harvest[/bold] {request.speech} → {request.out}, board {request.board or 'default'}")
    with screen, listening(lambda done, total: screen.progress("harvest", done, total)):
        harvested = harvest_speech(request)
    show_harvest(screen, harvested.dataset, harvested.made)
    return 0


def _import_dumps(arguments: argparse.Namespace) -> int:
    from nightjar.request import ImportRequest
    from nightjar.show import Screen, show_calibration

    request = parse_options(arguments, ImportRequest)
    screen = Screen()
    screen.say(f"[bold]import-dumps[/bold] {request.bin_dir or request.program} for {request.model} → {request.target}")
    from flows.import_dumps import import_dumps_flow
    from flows.start import run_flow

    results, _ = run_flow(import_dumps_flow, request, screen, refresh=request.refresh)
    show_calibration(screen, results)
    _write_json(arguments, results)
    return 0


def _deploy(arguments: argparse.Namespace) -> int:
    from nightjar.request import DeployRequest
    from nightjar.show import Screen, show_deployed, show_releases, show_results

    request = parse_options(arguments, DeployRequest)
    if arguments.list:
        from nightjar.deploy import list_releases

        listed = {name: state.model_dump() for name, state in list_releases(request.board).items()}
        show_releases({name: listed[name] for name in listed if request.name in (None, name)}, request.board)
        _write_json(arguments, listed)
        return 0
    screen = Screen()
    screen.say(f"[bold]deploy[/bold] {request.model} → {request.target}, {request.precision} to {request.board}")
    from flows.deploy import deploy
    from flows.start import run_flow

    results, _ = run_flow(deploy, request, screen, refresh=request.refresh)
    show_results(screen, results["port"])
    show_deployed(screen, results)
    _write_json(arguments, results)
    return 1 if results["reason"] else 0


def _rollback(arguments: argparse.Namespace) -> int:
    from nightjar.deploy import roll_back
    from nightjar.show import Screen, show_deployed

    done = roll_back(arguments.board, arguments.name, arguments.to).model_dump(mode="json")
    show_deployed(Screen(), {**done, "board": arguments.board})
    _write_json(arguments, done)
    return 0


def _write_json(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _reproduce(arguments: argparse.Namespace) -> int:
    from nightjar.reproduce import differences, read_report
    from nightjar.show import Screen, show_results

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


def _compare(arguments: argparse.Namespace) -> int:
    from nightjar.show import Screen, show_comparison

    screen = Screen()
    screen.say(f"[bold]compare[/bold] {arguments.model}: openai-whisper, TorchScript, ONNX")
    from flows.compare import CompareRequest, compare
    from flows.start import run_flow

    given = {name: getattr(arguments, name) for name in ("model", "checkpoint", "language", "window", "out")}
    request = CompareRequest(speech=tuple(arguments.speech), **given)
    results, _ = run_flow(compare, request, screen)
    show_comparison(screen, results)
    return 0 if results["equal"] == results["clips"] else 1


def _listing(kind: str) -> Callable[[argparse.Namespace], int]:
    def show(arguments: argparse.Namespace) -> int:
        from nightjar.show import show_models, show_targets

        (show_targets if kind == "targets" else show_models)()
        return 0

    return show


def _toolchain(arguments: argparse.Namespace) -> int:
    from nightjar.show import Screen
    from nightjar.toolchain import install, probe, toolchain

    screen = Screen()
    if arguments.word == "install":
        found = install(arguments.target, screen.say)
    else:
        found = toolchain(arguments.target)
        probe(found)
    versions = ", ".join(f"{name} {version}" for name, version in found.versions().items())
    screen.say(f"toolchain {found.target} in {found.folder} is as pinned and works: {versions}")
    return 0


def _board_check(arguments: argparse.Namespace) -> int:
    from nightjar.check import check

    return _found(check(arguments.alias, arguments.target))


def _doctor(arguments: argparse.Namespace) -> int:
    from nightjar.doctor import examine

    return _found(examine())


def _found(findings: Sequence[Any]) -> int:
    from nightjar.show import show_doctor

    show_doctor(findings)
    return 3 if any(finding.outcome == "missing" for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
