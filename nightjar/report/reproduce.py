"""Read what a report was made of, and say whether a later run came to the same."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nightjar.errors import BadInput
from nightjar.report.page import embedded_results
from nightjar.request import EvaluateRequest, PortRequest

FIGURES = ("verdict", "clips", "words", "skipped", "wer", "wer_float", "wer_stock", "delta_wer", "interval")


def read_report(path: Path) -> tuple[dict[str, Any], PortRequest | EvaluateRequest]:
    """Return the results in a report.html or results.json, and the request they answer; raises BadInput otherwise."""
    try:
        text = path.read_text(encoding="utf-8")
        results: dict[str, Any] = json.loads(text) if path.suffix == ".json" else embedded_results(text)
        given = results["request"]
        if "files" not in given:
            return results, PortRequest(**given)
        # Earlier reports list fields of a port that an evaluation does not have.
        fields = EvaluateRequest.model_fields
        return results, EvaluateRequest(**{name: value for name, value in given.items() if name in fields})
    except OSError as error:
        raise BadInput(f"cannot read {path} ({error.strerror}): give a report.html or results.json") from error
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise BadInput(
            f"{path} is no report of `nightjar port` ({type(error).__name__}): give its report.html or results.json"
        ) from error


def differences(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Say which figures differ, and what that both were made of has changed since."""
    figures = [f"{name}: {before[name]} then, {after[name]} now" for name in FIGURES if before[name] != after[name]]
    changed = []
    for name in before["made_from"].keys() & after["made_from"].keys():
        old, new = before["made_from"][name], after["made_from"][name]
        for kind in ("inputs", "libraries", "board"):
            for part in sorted(old[kind].keys() | new[kind].keys()):
                if old[kind].get(part) != new[kind].get(part):
                    changed.append(f"{name}, {part}: {old[kind].get(part)} then, {new[kind].get(part)} now")
        if old["code_sha256"] != new["code_sha256"]:
            changed.append(f"{name}: the code has changed since")
    return figures, sorted(changed)
