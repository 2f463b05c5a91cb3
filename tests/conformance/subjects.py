"""What the suite is run on: every folder in targets/, every stand-in, and copies of a folder that lie elsewhere."""

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nightjar.plugins.registry import Plugin, names, plugin
from nightjar.store.fingerprint import module_file


class Subject(NamedTuple):
    """One target: its module, its folder, and how it is named."""

    name: str
    module: ModuleType
    folder: Path

    @property
    def plugin(self) -> Plugin:
        return Plugin(module=self.module.__name__)

    @property
    def is_stand_in(self) -> bool:
        return self.name.endswith(".stand_in")

    def part(self, name: str) -> ModuleType:
        """Import another module of the folder: runner, lint."""
        return importlib.import_module(f"{self.module.__name__}.{name}")

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.py").is_file()


def subjects() -> list[str]:
    """Name every target and stand-in there is."""
    own = names("targets")
    return own + [f"{name}.stand_in" for name in own if module_file(f"targets.{name}.stand_in")]


def subject(name: str) -> Subject:
    """Load one by its name."""
    found = plugin("targets", name.removesuffix(".stand_in"))
    found = Plugin(module=f"targets.{name}") if name.endswith(".stand_in") else found
    module = found.load()
    assert module.__file__ is not None
    return Subject(name, module, Path(module.__file__).parent)


@contextlib.contextmanager
def elsewhere(folder: Path, name: str) -> Iterator[Subject]:
    """Load a target from a folder outside targets/, as if it lay there under this name."""
    full = f"targets.{name}"
    spec = importlib.util.spec_from_file_location(
        full, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    try:
        spec.loader.exec_module(module)
        yield Subject(name, module, folder)
    finally:
        for each in [key for key in sys.modules if key == full or key.startswith(f"{full}.")]:
            del sys.modules[each]


def read(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of a binary or of graphs."""
    found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return found
