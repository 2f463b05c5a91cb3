"""toolchain, targets, models, doctor: what is installed on this machine."""

import argparse
from pathlib import Path
from typing import Any

from nightjar.cli.command import add_command, add_group


def add(commands: Any) -> None:
    """Add them to the command line."""
    toolchains = add_group(commands, "toolchain", "vendor SDKs, each in an environment of its own")
    install = add_command(toolchains, "install", "install and probe a target's SDK", _install)
    install.add_argument("--sdk", type=Path, metavar="FOLDER", help="folder with the vendor's own wheels and compiler")
    for parser in (install, add_command(toolchains, "status", "check and probe a target's SDK", _status)):
        parser.add_argument("target", help="the target it belongs to, or `TARGET.stand_in`")
    add_command(commands, "targets", "list the targets there are", _targets)
    add_command(commands, "models", "list the models there are", _models)
    add_command(commands, "doctor", "check this machine: environment, store, server, targets, models", _doctor)


def _install(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen
    from nightjar.toolchains.install import install

    return _show_toolchain(install(arguments.target, Screen().say, arguments.sdk))


def _status(arguments: argparse.Namespace) -> int:
    from nightjar.toolchains.environment import probe, toolchain

    found = toolchain(arguments.target)
    probe(found)
    return _show_toolchain(found)


def _show_toolchain(found: Any) -> int:
    from nightjar.cli.console import Screen

    versions = ", ".join(f"{name} {version}" for name, version in found.versions().items())
    Screen().say(f"toolchain {found.target} in {found.folder} is as pinned and works: {versions}")
    return 0


def _targets(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen, show_targets

    show_targets(Screen())
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen, show_models

    show_models(Screen())
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import show_findings
    from nightjar.cli.doctor import examine

    return show_findings(examine())
