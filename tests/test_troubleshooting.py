"""docs/troubleshooting.md holds every message of the error tree, no message that is gone, and only commands there are.

A message's *template* is its text with `…` for every variable; its *fragment* is the longest run of text between two of
them. The page quotes templates, whole or in part, in backticks in the first cell of a table row.
"""

import argparse
import ast
import re
import string
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from nightjar import errors
from nightjar.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
MODULES = sorted(p for top in ("nightjar", "models", "targets", "tasks", "flows") for p in (ROOT / top).rglob("*.py"))
TREE = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}

# Messages made of variables alone: each says again what another message of the tree says, with the place before it.
EXEMPT = {
    "nightjar/speech/manifest.py": "the line of a manifest before a BadAudio of nightjar/speech/audio.py",
    "targets/onnx/adopt.py": "the user's file before a Broken of targets/onnx/audit.py",
}


class Message(NamedTuple):
    """One message as the code writes it."""

    kind: str
    where: str
    template: str

    @property
    def fragment(self) -> str:
        """The longest constant run of the template, without punctuation at its ends."""
        runs = (run.strip(string.punctuation + string.whitespace) for run in self.template.split("…"))
        return max(runs, key=len)


def templates(node: ast.expr) -> list[str]:
    """Write a string expression with `…` for its variables: one text, or one per branch of a conditional."""
    if isinstance(node, ast.IfExp):
        return [*templates(node.body), *templates(node.orelse)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left in templates(node.left) for right in templates(node.right)]
    if isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        return [re.sub("…+", "…", text)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else ["…"]


@cache
def trees() -> dict[str, ast.Module]:
    """Parse every module, by its path in the repository."""
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


@cache
def messages() -> list[Message]:
    """Find every call of a class of the error tree, raised or returned."""
    found = []
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (kind := called(node)) in TREE:
                where = f"{name}:{node.lineno}"
                assert len(node.args) == 1, f"{where}: {kind} takes one message"
                found += [Message(kind, where, template) for template in templates(node.args[0])]
    return found


def called(node: ast.Call) -> str:
    """Name what a call calls: `BadInput` in `BadInput(…)` and in `errors.BadInput(…)`."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


@cache
def sections() -> dict[str, tuple[str, int | None, str]]:
    """Part the page into title -> (class of the tree or "", its exit code, body)."""
    _, *parts = re.split(r"^#+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: dict[str, tuple[str, int | None, str]] = {}
    for part in parts:
        title, _, body = part.partition("\n")
        said = re.search(r"\(`(\w+)`, exit (\d+)\)$", title)
        found[title] = (said[1], int(said[2]), body) if said else ("", None, body)
    return found


def spans(text: str) -> list[str]:
    """List the code spans of a text, of one backtick or more."""
    return [span.strip() for _, span in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", text)]


def quoted(body: str) -> Iterator[str]:
    """Yield the code spans in the first cell of each table row."""
    for line in body.splitlines():
        if line.startswith("|"):
            yield from spans(line.split("|")[1])


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

    visit("", cli._parser())
    return found


def test_every_class_of_the_tree_has_a_section_with_its_exit_code() -> None:
    said = {kind: code for kind, code, _ in sections().values() if kind}
    assert said == {name: kind.exit_code for name, kind in TREE.items()}


def test_every_message_is_in_the_section_of_its_class() -> None:
    bodies = {kind: list(quoted(body)) for kind, _, body in sections().values() if kind}
    missing = [
        f"{message.where}: {message.fragment!r} of `{message.template}` is not under {message.kind}"
        for message in messages()
        if message.fragment
        and not any(message.fragment in span and span in message.template for span in bodies.get(message.kind, ()))
    ]
    assert not missing, "docs/troubleshooting.md lacks\n" + "\n".join(missing)


def test_messages_of_variables_alone_are_few_and_known() -> None:
    assert {message.where.partition(":")[0] for message in messages() if not message.fragment} == EXEMPT.keys()


def test_every_quotation_stands_in_the_code() -> None:
    texts = {
        text
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr | ast.Constant)
        for text in templates(node)
    }
    stale = []
    for title, (kind, _, body) in sections().items():
        known = [message.template for message in messages() if message.kind == kind] if kind else texts
        stale += [f"{title}: `{span}`" for span in quoted(body) if not any(span in text for text in known)]
    assert not stale, "no message says any more\n" + "\n".join(stale)


def test_every_command_and_flag_exists() -> None:
    page = PAGE.read_text(encoding="utf-8")
    anywhere = set.union(*commands().values())
    unknown = []
    for span in [*spans(page), *re.findall(r"^ *(nightjar .+)$", page, flags=re.MULTILINE)]:
        flags = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", span))
        words = re.match(r"nightjar((?: [a-z][a-z-]*)*)", span)
        if words:
            name = max((name for name in commands() if f"{words[1]} ".startswith(f" {name}".rstrip() + " ")), key=len)
            if (words[1] and not name) or flags - commands()[name] - commands()[""]:
                unknown.append(span)
        elif span.startswith("--") and flags - anywhere:
            unknown.append(span)
    assert not unknown, "the command line has no\n" + "\n".join(unknown)
