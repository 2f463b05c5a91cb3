"""toolchain, targets, models, doctor: what is installed on this machine."""

import argparse
from pathlib import Path
from typing import Any

from nightjar.cli.command import EXIT_CODES, add_group, show_findings


def add(commands: Any) -> None:
    """Add them to the command line."""
    toolchains = add_group(commands, "toolchain", "vendor SDKs, each in an environment of its own")
    install = toolchains.add_parser("install", help="install and probe a target's SDK", epilog=EXIT_CODES)
    install.add_argument("--sdk", type=Path, metavar="FOLDER", help="folder with the vendor's own wheels and compiler")
    status = toolchains.add_parser("status", help="check and probe a target's SDK", epilog=EXIT_CODES)
    for parser, command in ((install, _install), (status, _status)):
        parser.add_argument("target", help="the target it belongs to, or `TARGET.stand_in`")
        parser.set_defaults(command=command)
    commands.add_parser("targets", help="list the targets there are").set_defaults(command=_targets)
    commands.add_parser("models", help="list the models there are").set_defaults(command=_models)
    doctor = commands.add_parser("doctor", help="check this machine: environment, store, server, targets, models")
    doctor.set_defaults(command=_doctor)


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
    from nightjar.cli.console import show_targets

    show_targets()
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import show_models

    show_models()
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from nightjar.cli.doctor import examine

    return show_findings(examine())
