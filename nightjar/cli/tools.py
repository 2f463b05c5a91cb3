"""toolchain, targets, models, doctor: what is installed on this machine."""

import argparse
from pathlib import Path
from typing import Any

from nightjar.cli.command import add_command, add_group
from nightjar.cli.console import Screen, show_findings
from nightjar.cli.doctor import examine
from nightjar.plugins.registry import names, plugin
from nightjar.plugins.resolve import shipped_models
from nightjar.plugins.target import boards_of
from nightjar.toolchains import environment
from nightjar.toolchains.install import install


def add(commands: Any) -> None:
    """Add them to the command line."""
    toolchains = add_group(commands, "toolchain", "vendor SDKs, each in an environment of its own")
    installing = add_command(toolchains, "install", "install and probe a target's SDK", _install)
    sdk = "folder with the vendor's own wheels and compiler"
    installing.add_argument("--sdk", type=Path, metavar="FOLDER", help=sdk)
    for parser in (installing, add_command(toolchains, "status", "check and probe a target's SDK", _status)):
        parser.add_argument("target", help="the target it belongs to, or `TARGET.stand_in`")
    add_command(commands, "targets", "list the targets there are", _targets)
    add_command(commands, "models", "list the models there are", _models)
    doctor = "check this machine: environment, store, server, targets, models"
    add_command(commands, "doctor", doctor, lambda _: show_findings(examine()))


def _install(arguments: argparse.Namespace) -> None:
    _show_toolchain(install(arguments.target, Screen().say, arguments.sdk))


def _status(arguments: argparse.Namespace) -> None:
    found = environment.toolchain(arguments.target)
    environment.probe(found)
    _show_toolchain(found)


def _show_toolchain(found: environment.Toolchain) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in found.versions().items())
    Screen().say(f"toolchain {found.target} in {found.folder} is as pinned and works: {versions}")


def _targets(_: argparse.Namespace) -> None:
    """List the targets with their boards and tiers."""
    columns = ("target", "boards (tier)", "precisions", "what it is")
    rows = []
    for name in names("targets"):
        module = plugin("targets", name).load()
        boards = ", ".join(f"{board} ({tier})" for board, tier in boards_of(name).items())
        precision = module.Options.model_json_schema()["properties"]["precision"]
        precisions = ", ".join(precision.get("enum", [precision.get("const")]))
        rows.append((name, boards, precisions, (module.__doc__ or "").strip().splitlines()[0]))
    Screen().table(columns, rows, columns, columns)


def _models(_: argparse.Namespace) -> None:
    """List the model names there are, by family."""
    columns = ("family", "shipped, with speech", "by name (downloaded once)")
    rows = []
    for family in names("models"):
        shipped = [name for name in shipped_models() if name.startswith(family)]
        rows.append((family, ", ".join(shipped), ", ".join(plugin("models", family).load().NAMES)))
    screen = Screen()
    screen.table(columns, rows, columns, columns)
    screen.print("any other checkpoint: --model LABEL --checkpoint PATH")
