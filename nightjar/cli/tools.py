"""toolchain, targets, models, doctor: what is installed on this machine."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nightjar.cli.command import EXIT_CODES, add_group, show_findings


def add(commands: Any) -> None:
    """Add them to the command line."""
    toolchains = add_group(commands, "toolchain", "vendor SDKs, each in an environment of its own")
    for word, said in (("install", "make and probe a target's SDK"), ("status", "look at it and probe it")):
        one = toolchains.add_parser(word, help=said, epilog=EXIT_CODES)
        one.add_argument("target", help="the target it belongs to, or `TARGET.stand_in`")
        if word == "install":
            said = (
                "folder of what only the vendor gives: its wheels, its compiler; nothing of it is looked for elsewhere"
            )
            one.add_argument("--sdk", type=Path, metavar="FOLDER", help=said)
        one.set_defaults(command=_toolchain, word=word)
    for kind in ("targets", "models"):
        listing = commands.add_parser(kind, help=f"list the {kind} there are")
        listing.set_defaults(command=_listing(kind))
    doctor = commands.add_parser("doctor", help="check this machine: environment, store, server, targets, models")
    doctor.set_defaults(command=_doctor)


def _toolchain(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen
    from nightjar.toolchains.environment import probe, toolchain
    from nightjar.toolchains.install import install

    screen = Screen()
    if arguments.word == "install":
        found = install(arguments.target, screen.say, arguments.sdk)
    else:
        found = toolchain(arguments.target)
        probe(found)
    versions = ", ".join(f"{name} {version}" for name, version in found.versions().items())
    screen.say(f"toolchain {found.target} in {found.folder} is as pinned and works: {versions}")
    return 0


def _listing(kind: str) -> Callable[[argparse.Namespace], int]:
    def show(arguments: argparse.Namespace) -> int:
        from nightjar.cli.console import show_models, show_targets

        (show_targets if kind == "targets" else show_models)()
        return 0

    return show


def _doctor(arguments: argparse.Namespace) -> int:
    from nightjar.cli.doctor import examine

    return show_findings(examine())
