"""Take files made elsewhere as a binary."""

from pathlib import Path

from pydantic import BaseModel

from nightjar.errors import BadInput, UnknownName
from nightjar.files import digest_file
from nightjar.graphs.prebuilt import PrebuiltFiles
from nightjar.plugins.registry import Plugin, names, plugin
from nightjar.store.fingerprint import module_file
from tasks.stage import stage


class InputFiles(BaseModel, frozen=True):
    """Name files from outside the store; their content enters a key, whatever their names and order."""

    paths: tuple[Path, ...]
    sha256: tuple[str, ...]

    def identity(self) -> dict[str, str]:
        """Return what enters the key."""
        return {"sha256": " ".join(sorted(self.sha256))}


def input_files(paths: tuple[Path, ...]) -> InputFiles:
    """Name files by content; raises BadInput for one that is not there."""
    for path in paths:
        if not path.is_file():
            raise BadInput(f"no file {path}: give the files of the parts, one each")
    once = tuple(dict.fromkeys(path.resolve() for path in paths))
    return InputFiles(paths=once, sha256=tuple(map(digest_file, once)))


def adopt_plugin(name: str) -> Plugin:
    """Return the module with which a target takes files made elsewhere; raises UnknownName where it has none."""
    able = [each for each in names("targets") if module_file(f"targets.{each}.adopt")]
    if name not in able and name in names("targets"):
        raise UnknownName(
            f"target {name!r} takes no files made elsewhere, as its folder has no adopt.py; "
            f"--target {' or --target '.join(able)} does; `nightjar port --target {name}` builds and scores"
        )
    return plugin("targets", name, "adopt")


def recognise(files: InputFiles, target: Plugin, contract: Plugin) -> PrebuiltFiles:
    """Read what the files say of themselves: which part each is, and the recipe they are of."""
    describe = target.load().describe
    given: PrebuiltFiles = contract.load().recognise({path: describe(path) for path in files.paths})
    return given


@stage
def adopt(*, files: InputFiles, graphs: Path, target: Plugin, contract: Plugin, out: Path) -> dict[str, str]:
    """Make a binary of given files, held against the `graphs` that a checkpoint has for the same recipe."""
    target.load().adopt(recognise(files, target, contract).parts, graphs, out)
    return {"target": target.module.split(".")[1]}
