"""Name the part that a loss comes from: every encoder with every decoder, on the same clips."""

import itertools
import json
from typing import Any

from prefect import flow

from flows.evaluation import evaluate_binary
from flows.port import build_binary, make_calibration
from flows.prepare import Prepared, prepare
from nightjar.files import storage_errors, write_atomic
from nightjar.paths import reports_folder, shown
from nightjar.plugins.registry import plugin
from nightjar.request import AttributeRequest, as_port
from nightjar.scoring.attribution import PartPair, attribute_loss
from nightjar.scoring.score import score
from nightjar.store.artifact import Artifact
from tasks.hypotheses import EvaluateOptions, read_hypotheses
from tasks.judge import clips_from_lines
from tasks.measure import divergence, logit_snr_db
from tasks.publish import board_suffix
from tasks.stage import current_or_new_run, current_run


@flow(name="attribute", flow_run_name="attribute-{request.model}-{request.target}")
def attribute(request: AttributeRequest) -> dict[str, Any]:
    """Build every precision, evaluate every encoder with every decoder, and name the part that a loss comes from.

    The cross-attention part goes with the decoder. `float` are the graphs as they are, on this machine.
    """
    with current_or_new_run(request.refresh, request.board_wait):
        port = as_port(request)
        prepared = prepare(port)
        calibration = make_calibration(port, prepared)
        binaries = {"float": prepared.reference, "fp": prepared.floating}
        precisions = tuple(dict.fromkeys(("float", *request.precisions)))
        for precision in precisions:
            if precision not in binaries:
                binaries[precision], _ = build_binary(as_port(request, precision=precision), prepared, calibration)
        options = EvaluateOptions(language=request.language, limit=request.limit, watch=True)
        session = (plugin("targets", prepared.host.name, "runner"),)  # runs the float part of a pair
        cells: dict[tuple[str, str], PartPair] = {}
        expected = None
        for encoder, decoder in itertools.product(precisions, precisions):  # float with float is the first pair
            obtained = evaluate_binary(
                prepared,
                binaries[decoder],
                speech=prepared.test_speech,
                options=options,
                label=f"{encoder} + {decoder}",
                reference=expected,
                on_host=expected is None,
                session=session,
                **({"encoder": binaries[encoder]} if encoder != decoder else {}),
            )
            expected = expected or obtained
            cells[encoder, decoder] = _cell(request, expected, obtained)
        return _write(request, prepared, precisions, cells)


def _cell(request: AttributeRequest, expected: Artifact, obtained: Artifact) -> PartPair:
    same = obtained is expected
    store = current_run().store
    wanted, got = read_hypotheses(store.path(expected)), read_hypotheses(store.path(obtained))
    scored = score("binary", "host", clips_from_lines(got), got, request.language)
    kl = 0.0 if same else divergence(wanted, got)[0]
    return PartPair(
        wer=round(scored.wer, 3),
        interval=(round(scored.interval[0], 3), round(scored.interval[1], 3)),
        snr_db=200.0 if same else round(logit_snr_db(wanted, got), 2),
        kl=float(f"{kl:.4g}"),
        bad=sum(clip.empty or clip.looping or clip.capped for clip in scored.clips),
        clips=len(scored.clips),
    )


def _write(
    request: AttributeRequest, prepared: Prepared, precisions: tuple[str, ...], cells: dict[tuple[str, str], PartPair]
) -> dict[str, Any]:
    name = f"attribute-{request.model}-{request.target}{board_suffix(request.target, request.board)}.json".lower()
    path = reports_folder() / name
    results = {
        "model": request.model,
        "target": request.target,
        "tier": prepared.board.tier,
        "precisions": list(precisions),
        "cells": [{"encoder": e, "decoder": d, **cell.model_dump()} for (e, d), cell in cells.items()],
        "owners": {p: attribute_loss(p, cells, request.max_delta_wer) for p in precisions if p != "float"},
        "out": shown(path),
    }
    with storage_errors():
        write_atomic(path, json.dumps(results, indent=1) + "\n")
    return results
