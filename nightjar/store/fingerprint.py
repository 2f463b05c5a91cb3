"""The code part of a stage's key: which files of this repository and which libraries make a result."""

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from nightjar.files import digest_file
from nightjar.paths import ROOT
from nightjar.store.file_memo import FileMemo

PACKAGES = ("nightjar", "models", "targets", "tasks", "flows")

# They decide when and where a stage runs and how bytes travel (checked at both ends), but never what is made.
EXCLUDED = frozenset(
    {"tasks.stage", "tasks.concurrency", "tasks.dask", "prefect"}
    | {f"nightjar.boards.{name}" for name in ("agent_link", "config", "ssh")}
)
DISTRIBUTIONS = {"whisper": "openai-whisper", "yaml": "PyYAML"}  # of modules with another name


class Closure(NamedTuple):
    """Files of this repository by sha256, and libraries by version."""

    files: dict[str, str]
    libraries: dict[str, str]


def closure(modules: Iterable[str], root: Path = ROOT) -> Closure:
    """Follow the imports of `modules` through this repository.

    Imports in functions count, those under `if TYPE_CHECKING` do not. The packages that contain a module count, because
    Python runs them, except a target's package above its runner. Files of a `templates/` folder beside a module count,
    because the module reads them. A library counts with its version if this repository's code imports it directly.
    """
    todo, seen, leaves, templates = list(modules), set[str](), set[str](), set[Path]()
    files, libraries = dict[str, str](), dict[str, str]()
    while todo:
        module = todo.pop()
        if module in seen or module in EXCLUDED:
            continue
        seen.add(module)
        top, parent = module.partition(".")[0], module.rpartition(".")[0]
        if top not in PACKAGES:
            foreign = top not in sys.stdlib_module_names and top not in EXCLUDED
            if foreign and (found := version(top)):
                libraries[top] = found
            continue
        if parent in leaves:  # a name in a module, not a module
            continue
        # A target's package compiles; its runner runs on boards without that package, so the package does not count.
        if parent and not parent.startswith("targets."):
            todo.append(parent)
        if (path := module_file(module, root)) is not None:
            package = path.name == "__init__.py"
            files[path.relative_to(root).as_posix()], imported = _scans.get(path, module if package else parent)
            templates.add(path.parent / "templates")
            if not package:
                leaves.add(module)
            todo.extend(reversed(imported))  # a module before what is imported from it
    for path in (path for folder in templates for path in folder.rglob("*") if path.is_file() and path.suffix != ".py"):
        files[path.relative_to(root).as_posix()] = digest_file(path)
    _scans.save()
    return Closure(dict(sorted(files.items())), dict(sorted(libraries.items())))


def module_file(module: str, root: Path = ROOT) -> Path | None:
    """Return the .py file of a module of this repository, None if there is none."""
    stem = root.joinpath(*module.split("."))
    return next((path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.is_file()), None)


def _read(path: Path, package: str) -> tuple[str, tuple[str, ...]]:
    source = path.read_bytes()
    return hashlib.sha256(source).hexdigest(), tuple(_imports(ast.parse(source), package))


_scans = FileMemo("scans", _read)


def _imports(tree: ast.AST, package: str) -> Iterable[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = node.module or ""
            if node.level:
                prefix = importlib.util.resolve_name("." * node.level + prefix, package)
            yield prefix
            yield from (f"{prefix}.{alias.name}" for alias in node.names)  # a module or a name in one
        elif isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):  # expressions cannot import
            yield from _imports(node, package)


@functools.cache
def version(top: str) -> str:
    """Return the installed version of the distribution that provides a top-level module, empty if none does."""
    for name in (top, DISTRIBUTIONS.get(top, top)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    if importlib.util.find_spec(top) is None:  # an SDK in another environment; the search below would be slow
        return ""
    distributions = importlib.metadata.packages_distributions().get(top, [])
    return importlib.metadata.version(distributions[0]) if distributions else ""
