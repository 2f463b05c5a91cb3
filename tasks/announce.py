"""Tell Prefect's event stream what came of a port and of a night, so that automations can tell people."""

import json
from collections.abc import Sequence
from typing import Any

from prefect.client.schemas.actions import ArtifactCreate
from prefect.events import emit_event

from nightjar.nightly.history import Finding, Night

VERDICT, NIGHT = "nightjar.verdict", "nightjar.night"
LEFT_OUT = ("search", "recipe")  # of what a run keeps of its results: the report has them
LONGEST = 4000  # characters of a sentence in an event
RESULTS = "result"  # the type that Prefect's UI lists nowhere


def results_artifact(results: dict[str, Any]) -> ArtifactCreate:
    """Make what the nightly run reads of a port that ran elsewhere: JSON without a key, of a type that is not shown."""
    said = {name: value for name, value in results.items() if name not in LEFT_OUT}
    return ArtifactCreate(type=RESULTS, description="results.json, for the night", data=json.dumps(said))


def announce_verdict(results: dict[str, Any]) -> None:
    """Emit `nightjar.verdict` of a port; its resource is the cell, its outcome a label that triggers can match."""
    low, high = results["interval"]
    cell = "/".join((results["model"], results["target"], results["precision"]))
    said = (
        f"{cell} on {results['tier']}: {results['verdict']}, WER of binary − float {results['delta_wer']:+.2f} points "
        f"[{low:+.2f}, {high:+.2f}], {results['clips']} clips"
    )
    held = [gate["sentence"] for gate in results["gates"] if gate["outcome"] == results["verdict"] != "PASS"]
    named = ("model", "target", "precision", "tier", "wer", "wer_float", "delta_wer", "interval", "clips", "report")
    emit_event(
        event=VERDICT,
        resource={
            "prefect.resource.id": f"nightjar.cell.{cell}",
            "prefect.resource.name": cell,
            "nightjar.outcome": results["verdict"],
        },
        payload={
            "outcome": results["verdict"],
            "sentence": ". ".join((said, *held))[:LONGEST],
            **{name: results[name] for name in named},
        },
    )


def announce_night(night: Night, sentence: str, findings: Sequence[Finding]) -> None:
    """Emit `nightjar.night`: what a person wants to be told of in the morning."""
    regressions = [finding for finding in findings if finding.regression]
    emit_event(
        event=NIGHT,
        resource={
            "prefect.resource.id": f"nightjar.nightly.config.{night.night}",
            "prefect.resource.name": f"night {night.night}",
            "nightjar.outcome": night.outcome,
            "nightjar.regressions": str(len(regressions)),
        },
        payload={
            "outcome": night.outcome,
            "sentence": sentence[:LONGEST],
            "night": night.night,
            "cells": night.cells,
            "failed": night.failed[:LONGEST],
            "regressions": [
                {"cell": each.cell, "kind": each.kind, "causes": each.causes, "sentence": each.sentence}
                for each in regressions[:50]
            ],
        },
    )
