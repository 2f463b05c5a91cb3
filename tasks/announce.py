"""Prefect events of a port and of a night, for automations that notify people."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.actions import ArtifactCreate
from prefect.events import emit_event

from nightjar.scoring.verdict import deciding_gates

if TYPE_CHECKING:  # it imports pandas, half a second that a port does not need
    from nightjar.nightly.history import Finding, Night

VERDICT, NIGHT = "nightjar.verdict", "nightjar.night"
LEFT_OUT = ("search", "recipe")  # of the results that a run keeps; the report has them
MOST_CHARACTERS = 4000  # of a sentence in an event
RESULTS = "result"  # an artifact type that Prefect's UI does not list


def results_artifact(results: dict[str, Any]) -> ArtifactCreate:
    """Make the artifact that the nightly run reads of a port on another machine: JSON without a key, not shown."""
    shown = {name: value for name, value in results.items() if name not in LEFT_OUT}
    return ArtifactCreate(type=RESULTS, description="results.json, for the night", data=json.dumps(shown))


def announce_verdict(results: dict[str, Any]) -> None:
    """Emit `nightjar.verdict` of a port; its resource is the cell, its outcome a label that triggers can match."""
    low, high = results["interval"]
    cell = "/".join((results["model"], results["target"], results["precision"]))
    sentence = (
        f"{cell} on {results['tier']}: {results['verdict']}, WER of binary − float {results['delta_wer']:+.2f} points "
        f"[{low:+.2f}, {high:+.2f}], {results['clips']} clips"
    )
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
            "sentence": ". ".join((sentence, *deciding_gates(results)))[:MOST_CHARACTERS],
            **{name: results[name] for name in named},
        },
    )


def announce_night(night: "Night", sentence: str, findings: Sequence["Finding"]) -> None:
    """Emit `nightjar.night`: the summary of a night and its regressions."""
    regressions = [finding for finding in findings if finding.regression]
    emit_event(
        event=NIGHT,
        resource={
            "prefect.resource.id": f"nightjar.night.{night.night}",
            "prefect.resource.name": f"night {night.night}",
            "nightjar.outcome": night.outcome,
            "nightjar.regressions": str(len(regressions)),
        },
        payload={
            "outcome": night.outcome,
            "sentence": sentence[:MOST_CHARACTERS],
            "night": night.night,
            "cells": night.cells,
            "failed": night.failed[:MOST_CHARACTERS],
            "regressions": [
                {"cell": each.cell, "kind": each.kind, "causes": each.causes, "sentence": each.sentence}
                for each in regressions[:50]
            ],
        },
    )
