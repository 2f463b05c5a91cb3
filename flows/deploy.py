"""Deploy a port: run the port, cached where possible, make a bundle, and put it on a board.

…─▶ binary ─bundle─▶ bundle ─deploy─▶ a release on the board, current when its canary passes
"""

from typing import Any

from prefect import flow

from flows.port import run_port
from nightjar.boards.config import find_board
from nightjar.deploy.bundle import PortSummary
from nightjar.deploy.rollout import draw_canary, roll_out
from nightjar.plugins.registry import plugin
from nightjar.plugins.resolve import speech_source
from nightjar.plugins.target import session_of
from nightjar.request import DeployRequest, as_port
from nightjar.speech.manifest import file_safe_id, load_speech
from nightjar.store.artifact import Artifact
from tasks.bundle import bundle
from tasks.judge import read_scores
from tasks.stage import current_or_new_run


@flow(name="deploy", flow_run_name="deploy-{request.model}-{request.target}-{request.board}")
def deploy(request: DeployRequest) -> dict[str, Any]:
    """Port, bundle, and put the bundle on the board; a port with the verdict FAIL needs --force."""
    with current_or_new_run(request.refresh) as run:
        find_board(request.board)  # an unknown alias fails before the port, not after it
        prepared, ported = run_port(as_port(request))
        name = request.name or file_safe_id(request.model)[:64]
        results: dict[str, Any] = {"port": ported, "name": name, "board": request.board}
        if ported["verdict"] == "FAIL" and not request.force:
            failed = next(gate["sentence"] for gate in ported["gates"] if gate["outcome"] == "FAIL")
            return {**results, "reason": f"the port's verdict is FAIL ({failed}); --force deploys it all the same"}
        packed = bundle(
            binary=_artifact(ported["made_from"]["binary"]),
            session=session_of(prepared.decode, prepared.target, prepared.board),
            vocabulary=plugin("models", prepared.family, "vocabulary"),
            board=prepared.board,
            model=request.model,
            language=request.language,
            port=PortSummary.of(ported),
        )
        scores = read_scores(run.store.path(_artifact(ported["made_from"]["verdict"])))
        canary = draw_canary(
            load_speech(speech_source(request.model, request.test_set, "test").path),
            scores["binary" if request.canary_against == "port" else "float"].clips,
            request.canary_clips,
            request.max_canary_wer,
        )
        done = roll_out(request.board, name, run.store.path(packed), canary, request.keep)
        return {**results, **done.model_dump(mode="json")}


def _artifact(record: dict[str, Any]) -> Artifact:
    return Artifact(kind=record["stage"], key=record["key"], sha256=record["sha256"])
