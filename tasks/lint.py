"""Check graphs before they are compiled."""

from pathlib import Path

from pydantic_core import to_json

from nightjar.plugins.registry import Plugin
from tasks.concurrency import hold_toolchain
from tasks.stage import stage


@stage
def lint(*, graphs: Path, linter: tuple[Plugin, ...], out: Path) -> dict[str, str]:
    """Write `findings.json` of the target's lint; the other plug-ins of `linter` are the toolchain modules it uses."""
    first, *tools = linter
    with hold_toolchain(tools[0] if tools else first):
        findings = first.load().lint(graphs)
    (out / "findings.json").write_bytes(to_json(findings, indent=1) + b"\n")
    return {"findings": str(len(findings))}
