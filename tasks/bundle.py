"""Bundle a port's binary with everything that a board needs to run it."""

from pathlib import Path

from nightjar.boards.ref import BoardRef
from nightjar.deploy.bundle import PortSummary, write_bundle
from nightjar.files import read_json
from nightjar.plugins.registry import Plugin
from tasks.stage import stage


@stage
def bundle(
    *,
    binary: Path,
    session: tuple[Plugin, ...],
    vocabulary: Plugin,
    board: BoardRef,
    model: str,
    language: str,
    port: PortSummary,
    out: Path,
) -> dict[str, str]:
    """Write a bundle: parts, tables, tokens, code, transcribe.py and the manifest with the port's results."""
    manifest = write_bundle(
        out,
        binary=binary,
        modules=[each.module for each in session],
        tokens=vocabulary.load().token_bytes(read_json(binary / "model.json")),
        runtimes={"python": board.facts.python, **board.facts.runtimes},
        model=model,
        language=language,
        port=port,
    )
    return {"id": manifest.id}
