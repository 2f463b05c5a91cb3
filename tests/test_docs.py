"""What documents name exists: commands and their flags, files, and the targets of links."""

import argparse
import re
from functools import cache
from pathlib import Path

import pytest

from nightjar.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "targets/*/README.md", "data/README.md")
    for page in ROOT.glob(pattern)
    if page.name != "CHANGELOG.md"  # it names what was
)
FILE = re.compile(r"(?:nightjar|models|targets|tasks|flows|tests|benchmarks|data|docs|deployments)/[\w./-]+\.\w+")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def commands() -> dict[str, set[str]]:
    """List the command line: every command, "" for `nightjar` alone, and its flags."""
    found: dict[str, set[str]] = {}

    def visit(name: str, parser: argparse.ArgumentParser) -> None:
        found[name] = set(parser._option_string_actions)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, inner in action.choices.items():
                    visit(f"{name} {word}".strip(), inner)

    visit("", main._parser())
    return found


def spans(text: str) -> list[str]:
    """List the code spans of a text, of one backtick or more."""
    return [span.strip() for _, span in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", text)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_flag_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    typed = re.findall(r"^ *(?:\$ )?(nightjar (?:.*\\\n)*.+)$", text, flags=re.MULTILINE)
    unknown = []
    for span in [*spans(text), *typed]:
        line = re.split(r"[#|;]|&&", span.replace("\\\n", " "))[0]
        if not (words := re.match(r"nightjar((?: [a-z][a-z-]*)+)", line)):
            continue
        name = max((name for name in commands() if f"{words[1]} ".startswith(f" {name}".rstrip() + " ")), key=len)
        flags = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", line))
        if not name or flags - commands()[name] - commands()[""]:
            unknown.append(span)
    assert not unknown, "the command line has no\n" + "\n".join(unknown)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_and_link_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = {span for span in spans(text) if FILE.fullmatch(span) and "<" not in span and "*" not in span}
    missing = sorted(name for name in files if not (ROOT / name).exists())
    for target, _ in re.findall(r"\]\(((?!https?://|#|mailto:)[^)#\s]+)(#[^)]*)?\)", text):
        if not (page.parent / target).exists():
            missing.append(target)
    assert not missing, f"{name_of(page)} names files that are not there:\n" + "\n".join(missing)
