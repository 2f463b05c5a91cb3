"""An import-linter contract that names what may be imported, where naming all that may not would never be complete."""

import sys
from fnmatch import fnmatch
from typing import Any

from importlinter import Contract, ContractCheck, fields, output


class OnlyContract(Contract):  # type: ignore[misc]
    """Let modules (`models.*.decode`) import the standard library, each other, and what `allowed_modules` name."""

    source_modules = fields.ListField(subfield=fields.StringField())
    allowed_modules = fields.ListField(subfield=fields.StringField())

    def check(self, graph: Any, verbose: bool) -> ContractCheck:
        """Look at every direct import of the source modules and of what lies in them."""
        sources: list[str] = list(self.source_modules)  # type: ignore[call-overload]
        allowed: list[str] = [*self.allowed_modules, *sources]  # type: ignore[misc]
        found = [
            (module, imported)
            for module in sorted(graph.modules)
            if _within(module, sources)
            for imported in sorted(graph.find_modules_directly_imported_by(module))
            if imported.partition(".")[0] not in sys.stdlib_module_names and not _within(imported, allowed)
        ]
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each import that is not allowed."""
        for module, imported in check.metadata["found"]:
            output.print_error(f"{module} imports {imported}")


def _within(module: str, patterns: list[str]) -> bool:
    return any(fnmatch(module, pattern) or fnmatch(module, f"{pattern}.*") for pattern in patterns)
