"""Make a binary of files that were compiled elsewhere."""

from pathlib import Path

from pydantic import BaseModel

from nightjar.errors import BadInput, UnknownName
from nightjar.files import digest_file
from nightjar.graphs.prebuilt import PrebuiltFiles
from nightjar.plugins.registry import Plugin, names, plugin
from nightjar.store.fingerprint import module_file
from tasks.stage import stage


class InputFiles(BaseModel, frozen=True):
    """Files from outside the store; their content enters a key, their names if they matter, folder and order never."""

    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    named: bool = False

    def identity(self) -> dict[str, str]:
        """Return what enters the key."""
        if self.named:
            return {path.name: sha256 for path, sha256 in zip(self.paths, self.sha256, strict=True)}
        return {"sha256": " ".join(sorted(self.sha256))}

    def by_name(self) -> "InputFiles":
        """Return the files for a stage that finds them by name; raises BadInput for two of one name."""
        names = [path.name for path in self.paths]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BadInput(f"two files are called {twice[0]}: give each file once")
        return self.model_copy(update={"named": True})


def input_files(paths: tuple[Path, ...]) -> InputFiles:
    """Read the content's digests; raises BadInput for a missing file."""
    for path in paths:
        if not path.is_file():
            raise BadInput(f"no file {path}: give the files of the parts, one each")
    distinct = tuple(dict.fromkeys(path.resolve() for path in paths))
    return InputFiles(paths=distinct, sha256=tuple(map(digest_file, distinct)))


def adopt_plugin(name: str) -> Plugin:
    """Return a target's module for files compiled elsewhere; raises UnknownName if it has none."""
    able = [each for each in names("targets") if module_file(f"targets.{each}.adopt")]
    if name not in able and name in names("targets"):
        raise UnknownName(
            f"target {name!r} cannot take files compiled elsewhere, because its folder has no adopt.py: use --target "
            f"{' or --target '.join(able)}, or `nightjar port --target {name}`, which builds and scores"
        )
    return plugin("targets", name, "adopt")


def recognise(files: InputFiles, target: Plugin, contract: Plugin) -> PrebuiltFiles:
    """Find out from the files which part each one is, and their recipe."""
    describe = target.load().describe
    given: PrebuiltFiles = contract.load().recognise({path: describe(path) for path in files.paths})
    return given


@stage
def adopt(*, files: InputFiles, graphs: Path, target: Plugin, contract: Plugin, out: Path) -> dict[str, str]:
    """Make a binary of given files, checked against the `graphs` that a checkpoint has for the same recipe."""
    target.load().adopt(recognise(files, target, contract).parts, graphs, out)
    return {"target": target.module.split(".")[1]}
