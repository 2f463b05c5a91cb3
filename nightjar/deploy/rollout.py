"""Put a bundle on a board beside the current release, test it, switch to it; or roll back (device/releases.py)."""

import contextlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

import nightjar.device.releases
from nightjar.boards.config import find_board
from nightjar.boards.ssh import SshBoard
from nightjar.deploy.bundle import MANIFEST, SCRIPT, read_manifest
from nightjar.errors import BadInput, NightjarError, SessionFailed, printable
from nightjar.scoring.normalize import normalise
from nightjar.scoring.score import ClipScore
from nightjar.scoring.wer import corpus_wer, count_errors
from nightjar.sessions.board_program import ALL, BoardProgram, ProgramResult, run_program
from nightjar.speech.manifest import Clip, shuffled

log = logging.getLogger(__name__)

RELEASES = Path(nightjar.device.releases.__file__)
DEPLOYED = "deployed"  # in the board's scratch folder
CLIP_S = 300.0  # one clip of the canary, with the start of the runtime
ANSWER_S = 600.0  # hashing a release on a slow card

Answer = TypeVar("Answer", bound=BaseModel)


class Release(BaseModel, strict=True, allow_inf_nan=False):
    """One release as the board lists it; its manifest is only shown."""

    id: str
    whole: bool
    time_s: float
    about: dict[str, Any]


class DeploymentState(BaseModel, strict=True):
    """The releases of one deployment."""

    root: str
    current: str
    history: list[str]
    releases: list[Release]


class _Deployments(BaseModel):
    deployments: dict[str, DeploymentState]


class _Check(BaseModel):
    wrong: str  # empty for an undamaged release


class Canary(NamedTuple):
    """The test of a release before it becomes current."""

    clips: Sequence[Clip]  # each with the language of its text
    expected: Mapping[str, str]  # text by clip
    limit: float  # percent WER against the expected texts


class DeployResult(BaseModel, frozen=True):
    """The result of a deploy or rollback; reason: why nothing was switched, empty where it was."""

    name: str
    id: str
    before: str
    current: str
    path: str
    reason: str = ""
    canary_wer: float | None = None
    canary_clips: int = 0
    heard: dict[str, str] = {}  # hypothesis by clip of the canary


def draw_canary(clips: Sequence[Clip], scored: Sequence[ClipScore], count: int, limit: float) -> Canary:
    """Draw clips with a hypothesis of at least one word; raises BadInput where there are none."""
    fit = {each.id: each for each in scored if normalise(each.hypothesis, each.language).split()}
    found = [clip.model_copy(update={"language": fit[clip.id].language}) for clip in clips if clip.id in fit]
    drawn = shuffled(found, seed=0)[:count]
    if not drawn:
        raise BadInput(
            "no clip of the test set is fit for a canary, as the port has no words for it: give --test-set speech, or "
            "--canary-against float"
        )
    return Canary(drawn, {name: each.hypothesis for name, each in fit.items()}, limit)


def roll_out(alias: str, name: str, bundle: Path, canary: Canary, keep: int) -> DeployResult:
    """Upload a bundle, check and test it on the board, and make it current; a bundle that fails is deleted.

    Raises SessionFailed when the board is lost or its disk is full; the current release stays current in any case.
    """
    manifest = read_manifest(bundle)
    board = SshBoard(find_board(alias))
    with board.locked():
        before = _request(board, DeploymentState, name, "begin", id=manifest.id)
        folder = Path(DEPLOYED) / name / "releases" / manifest.id
        try:
            board.put_all([(bundle / path, folder / path) for path in (*manifest.files, MANIFEST)])
            if problem := _request(board, _Check, name, "check", id=manifest.id).wrong:
                raise SessionFailed(
                    f"release {manifest.id} arrived damaged on board {alias} ({printable(problem)}), nothing was "
                    "switched; run the same command again, it sends the damaged files"
                )
            result = _run_canary(board, f"{before.root}/releases/{manifest.id}", canary)
            hypotheses, wer, reason = check_canary(result, canary)
        except NightjarError:
            with contextlib.suppress(NightjarError):
                _request(board, DeploymentState, name, "drop", id=manifest.id)
            raise
        end = "drop" if reason else "switch"
        after = _request(board, DeploymentState, name, end, id=manifest.id, keep=keep)
    return DeployResult(
        name=name,
        id=manifest.id,
        before=before.current,
        current=after.current,
        path=f"{after.root}/current/{SCRIPT}",
        reason=reason,
        canary_wer=wer,
        canary_clips=len(canary.clips),
        heard=hypotheses,
    )


def roll_back(alias: str, name: str, to: str = "") -> DeployResult:
    """Make the release before the current one current again, or the release `to`; raises BadInput for none."""
    board = SshBoard(find_board(alias))
    with board.locked():
        deployments = _request(board, _Deployments, "", "list").deployments
        if not name and len(deployments) != 1:
            raise BadInput(
                f"board {alias} has {len(deployments)} deployments, {', '.join(deployments) or 'none'}: give one with "
                f"--name; `nightjar deploy --list --board {alias}` lists them"
            )
        name = name or next(iter(deployments))
        before = deployments[name].current if name in deployments else ""
        after = _request(board, DeploymentState, name, "back", id=to)
    path = f"{after.root}/current/{SCRIPT}"
    return DeployResult(name=name, id=after.current, before=before, current=after.current, path=path)


def list_deployments(alias: str) -> dict[str, DeploymentState]:
    """Return the deployments of a board, by name."""
    with SshBoard(find_board(alias)) as board:
        return _request(board, _Deployments, "", "list").deployments


def check_canary(result: ProgramResult, canary: Canary) -> tuple[dict[str, str], float | None, str]:
    """Return the hypotheses by clip, their WER in percent, and why the canary failed, empty where it did not."""
    hypotheses: dict[str, str] = {}
    for line in result.stdout.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a runtime prints lines of its own
            one = json.loads(line)
            hypotheses[Path(one["file"]).stem] = str(one["text"])
    if failure := result.failure(CLIP_S * len(canary.clips)):
        return hypotheses, None, f"its {SCRIPT} failed: {failure}"
    if missing := [clip.id for clip in canary.clips if clip.id not in hypotheses]:
        return hypotheses, None, f"its {SCRIPT} printed nothing for {missing[0]}"
    counts = {
        clip.id: count_errors(canary.expected[clip.id], hypotheses[clip.id], clip.language or "en")
        for clip in canary.clips
    }
    wer = corpus_wer(counts.values())
    if wer <= canary.limit:
        return hypotheses, wer, ""
    worst = max(counts, key=lambda name: counts[name].errors)
    reason = (
        f"canary WER {wer:.2f} % on {len(counts)} clips, limit {canary.limit:.2f} %; worst clip {worst}: "
        f"{printable(hypotheses[worst])!r}, expected {canary.expected[worst]!r}"
    )
    return hypotheses, wer, reason


def _run_canary(board: SshBoard, release: str, canary: Canary) -> ProgramResult:
    """Transcribe the canary's clips with a release's own script and language, all in one run."""
    command = (board.python, f"{release}/{SCRIPT}", "--json", "{clips}")
    program = BoardProgram(command=command, timeout_s=CLIP_S * len(canary.clips))
    with tempfile.TemporaryDirectory() as folder:
        clips = {clip.id: clip.audio for clip in canary.clips}
        return run_program(board, program, clips, Path(folder), language="")[ALL]


def _request(board: SshBoard, kind: type[Answer], name: str, do: str, **more: Any) -> Answer:
    """Run one request on the board; raises BadInput where it refuses, SessionFailed for an error."""
    request = {"deployed": f"{board.entry.scratch}/{DEPLOYED}", "name": name, "do": do, **more}
    done = board.run([board.python, "-c", RELEASES.read_text(encoding="utf-8"), json.dumps(request)], ANSWER_S)
    try:
        answer = dict(json.loads(done.stdout))
    except (ValueError, TypeError, RecursionError):
        raise _invalid_answer(board, printable(done.stderr or done.stdout)) from None
    if "refused" in answer:
        raise BadInput(
            f"board {board.alias}: {printable(str(answer['refused']))}; `nightjar deploy --list --board {board.alias}` "
            "lists the releases"
        )
    if "error" in answer:
        raise SessionFailed(
            f"board {board.alias} cannot store releases: {printable(str(answer['error']))}; the current release is "
            "unchanged: correct the cause there, then run the same command again"
        )
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        raise _invalid_answer(board, str(error.errors()[0]["msg"])) from error


def _invalid_answer(board: SshBoard, output: str) -> SessionFailed:
    return SessionFailed(
        f"invalid answer about releases from board {board.alias} ({output}); check python in boards.toml"
    )
