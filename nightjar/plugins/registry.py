"""Find models and targets by their folders: each folder is a plug-in."""

import importlib
from types import ModuleType
from typing import Literal

from pydantic import BaseModel

from nightjar.errors import UnknownName
from nightjar.paths import ROOT
from nightjar.store.fingerprint import module_file
from nightjar.toolchains.environment import toolchain

Kind = Literal["models", "targets"]


class Plugin(BaseModel, frozen=True):
    """One module of a model's or target's folder; its import closure enters the key of a stage that takes it."""

    module: str

    @property
    def name(self) -> str:
        """Return the module without its kind: `rknn`, `mtk.stand_in`, `whisper.decode`."""
        return self.module.partition(".")[2]

    def load(self) -> ModuleType:
        """Import the module."""
        return importlib.import_module(self.module)

    def tools(self) -> tuple[str, ...]:
        """List the modules that run in the environment of a target's SDK; nothing imports them."""
        inside = ROOT.joinpath(*self.module.split("."), "toolchain")
        return tuple(f"{self.module}.toolchain.{path.stem}" for path in sorted(inside.glob("*.py")))

    def sdk(self) -> dict[str, str]:
        """Return the versions in a target's SDK environment, empty for a target without; or raise ToolchainMissing."""
        return toolchain(self.name).versions() if self.tools() else {}


def names(kind: Kind) -> list[str]:
    """List the folders of a kind, sorted."""
    return sorted(path.parent.name for path in (ROOT / kind).glob("*/__init__.py"))


def plugin(kind: Kind, name: str, module: str = "") -> Plugin:
    """Return one module of the folder called `name`; raises UnknownName for an unknown folder or module."""
    known = names(kind)
    if name not in known:
        raise UnknownName(f"no {kind[:-1]} {name!r}; have {', '.join(known)}: see `nightjar {kind}`")
    path = ".".join(filter(None, (kind, name, module)))
    if module_file(path) is None:
        raise UnknownName(
            f"{kind[:-1]} {name!r} has no {module}.py: add {kind}/{name}/{module}.py, see docs/design.md, The tree"
        )
    return Plugin(module=path)
