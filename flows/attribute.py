"""Whose fault is it: every encoder with every decoder, on the same clips."""

import json
from typing import Any

from prefect import flow

from flows.port import Prepared, built, calibrated, prepared
from nightjar.files import storage_errors, write_atomic
from nightjar.paths import reports_folder, shown
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from nightjar.plugins.resolve import speech_sources
from nightjar.plugins.target import session_of
from nightjar.request import AttributeRequest
from nightjar.scoring.attribution import PartPair, attribute_loss
from nightjar.scoring.score import score
from nightjar.store.artifact import Artifact
from tasks.evaluate import evaluate
from tasks.hypotheses import EvaluateOptions, read_hypotheses
from tasks.judge import clips_from_lines
from tasks.measure import divergence, logit_snr_db
from tasks.stage import current_or_new_run, current_run


@flow(name="attribute", flow_run_name="attribute-{request.model}-{request.target}")
def attribute(request: AttributeRequest) -> dict[str, Any]:
    """Build every precision, hear every encoder with every decoder, and name the owner of what is lost.

    The cross-attention part goes with the decoder. `float` are the graphs as they are, run by the reference target.
    """
    with current_or_new_run(request.refresh, request.board_wait):
        made = prepared(request, speech_sources)
        calibration = calibrated(request, made)
        binaries = {"float": made.reference, "fp": made.floating}
        precisions = tuple(dict.fromkeys(("float", *request.precisions)))  # the measure is always there
        for precision in precisions:
            if precision not in binaries:
                binaries[precision], _ = built(request.model_copy(update={"precision": precision}), made, calibration)
        options = EvaluateOptions(language=request.language, limit=request.limit, watch=True)
        board, host = board_of(made.target, request.board), board_of(made.host, "local")

        def heard(encoder: str, decoder: str, reference: Artifact | None) -> Artifact:
            where, target = (host, made.host) if encoder == decoder == "float" else (board, made.target)
            found: Artifact = evaluate(
                binary=binaries[decoder],
                speech=made.test_speech,
                session=(*session_of(plugin("models", made.family, "decode"), target, where), _float_runner(made)),
                words=plugin("models", made.family, "tokens"),
                board=where,
                reference=reference,
                options=options,
                label=f"{encoder} + {decoder}",
                **({"encoder": binaries[encoder]} if encoder != decoder else {}),
            )
            return found

        expected = heard("float", "float", None)
        cells: dict[tuple[str, str], PartPair] = {}
        for encoder in precisions:
            for decoder in precisions:
                same = encoder == decoder == "float"
                cells[encoder, decoder] = _cell(
                    request, expected, expected if same else heard(encoder, decoder, expected), same
                )
        return _write(request, board.tier, precisions, cells)


def _float_runner(made: Prepared) -> Any:
    return plugin("targets", made.host.load().NAME, "runner")


def _cell(request: AttributeRequest, expected: Artifact, obtained: Artifact, same: bool) -> PartPair:
    store = current_run().store
    wanted, got = read_hypotheses(store.path(expected)), read_hypotheses(store.path(obtained))
    scored = score("binary", "host", clips_from_lines(got), got, request.language)
    kl = 0.0 if same else divergence(wanted, got)[0]
    bad = sum(clip.empty or clip.looping or clip.capped for clip in scored.clips)
    return PartPair(
        wer=round(scored.wer, 3),
        interval=(round(scored.interval[0], 3), round(scored.interval[1], 3)),
        snr_db=200.0 if same else round(logit_snr_db(wanted, got), 2),
        kl=float(f"{kl:.4g}"),
        bad=bad,
        clips=len(scored.clips),
    )


def _write(
    request: AttributeRequest, tier: str, precisions: tuple[str, ...], cells: dict[tuple[str, str], PartPair]
) -> dict[str, Any]:
    verdicts = {p: attribute_loss(p, cells, request.max_delta_wer) for p in precisions if p != "float"}
    results: dict[str, Any] = {
        "model": request.model,
        "target": request.target,
        "tier": tier,
        "precisions": list(precisions),
        "cells": [{"encoder": e, "decoder": d, **cell.model_dump()} for (e, d), cell in cells.items()],
        "owners": verdicts,
    }
    path = reports_folder() / f"attribute-{request.model}-{request.target}.json".lower()
    results["out"] = shown(path)
    with storage_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(results, indent=1) + "\n")
    return results
