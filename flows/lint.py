"""List what a target refuses in a model: in the plain export, and in the export by the target's own recipe.

checkpoint ─export─▶ graphs ─lint─▶ findings, twice
"""

import contextlib
from typing import Any

from prefect import flow

from flows.prepare import recipe_for
from nightjar.errors import ToolchainMissing
from nightjar.files import read_json
from nightjar.plugins.lint import Finding, large_parts
from nightjar.plugins.registry import Plugin, plugin
from nightjar.plugins.resolve import checkpoint_source, model_family
from nightjar.plugins.target import linter_of
from nightjar.request import LintRequest
from nightjar.toolchains.environment import toolchain
from tasks.export import export
from tasks.lint import lint
from tasks.stage import current_or_new_run


@flow(name="lint", flow_run_name="lint-{request.model}-{request.target}")
def lint_model(request: LintRequest) -> dict[str, Any]:
    """Export a model by the recipes of the reference and of the target, and run the target's lint on both."""
    with current_or_new_run(request.refresh) as run:
        target, linter = plugin("targets", request.target), linter_of(request.target)
        results: dict[str, Any] = {"target": request.target, "model": request.model, "plain": [], "recipe": []}
        if linter is None:
            return results | {"linted": False}
        family = model_family(request)
        checkpoint = checkpoint_source(request, family)
        exporter, modules = plugin("models", family, "export"), [linter]
        if name := getattr(linter.load(), "TOOLCHAIN", ""):
            with contextlib.suppress(ToolchainMissing):
                modules.append(Plugin(module=f"targets.{toolchain(name).target}"))
        recipes = {
            "plain": plugin("targets", "onnx").load().recipe(family),
            "recipe": recipe_for(request, target.load().recipe(family)),
        }
        for name, recipe in recipes.items():
            clamp = name == "plain" or request.window is None
            if large := large_parts(target, family, checkpoint.path, recipe, clamp):
                results[name] = [finding.model_dump() for finding in large]
                continue
            graphs = export(checkpoint=checkpoint, model=exporter, recipe=recipe, clamp=clamp, label=name)
            found = lint(graphs=graphs, linter=tuple(modules), label=name)
            entries = read_json(run.store.path(found) / "findings.json")
            results[name] = [Finding.model_validate(entry).model_dump() for entry in entries]
        return results | {"linted": True, "recipes": {name: recipe.model_dump() for name, recipe in recipes.items()}}
