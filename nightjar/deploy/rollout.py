"""Put a bundle on a board beside the current one, try it there, switch to it; or go back (releases.py, over there)."""

import contextlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

import nightjar.device.releases
from nightjar.boards.config import find_board
from nightjar.boards.ssh import SshBoard
from nightjar.deploy.bundle import MANIFEST, SCRIPT, read_manifest
from nightjar.errors import BadInput, NightjarError, SessionFailed
from nightjar.scoring.normalize import normalise
from nightjar.scoring.score import ClipScore
from nightjar.scoring.wer import corpus_wer, count_errors
from nightjar.sessions.board_program import ALL, BoardProgram, ProgramResult, run_program
from nightjar.speech.manifest import Clip, shuffled
from nightjar.text import printable

log = logging.getLogger(__name__)

RELEASES = Path(nightjar.device.releases.__file__)
DEPLOYED = "deployed"  # in the board's scratch folder
CLIP_S = 300.0  # one clip of the canary, with the start of the runtime
ANSWER_S = 600.0  # hashing a release on a slow card


class Release(BaseModel):
    """One release as the board lists it; what its manifest says is not believed beyond being shown."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: str
    whole: bool
    time_s: float
    about: dict[str, Any]


class State(BaseModel):
    """What is deployed under one name."""

    model_config = ConfigDict(strict=True)

    root: str
    current: str
    history: list[str]
    releases: list[Release]


class Canary(NamedTuple):
    """What a release must hear before it becomes current."""

    clips: Sequence[Clip]
    expected: Mapping[str, str]  # text by clip
    language: str
    limit: float  # percent WER against what is expected


class DeployResult(BaseModel, frozen=True):
    """What came of a deploy or rollback; `reason` says why nothing was switched, empty where it was."""

    name: str
    id: str
    before: str
    current: str
    path: str
    reason: str = ""
    canary_wer: float | None = None
    canary_clips: int = 0
    heard: dict[str, str] = {}


def draw_canary(clips: Sequence[Clip], scored: Sequence[ClipScore], count: int, language: str, limit: float) -> Canary:
    """Draw clips on which words were heard; raises BadInput where there are none."""
    expected = {each.id: each.hypothesis for each in scored if normalise(each.hypothesis, language).split()}
    drawn = shuffled([clip for clip in clips if clip.id in expected], seed=0)[:count]
    if not drawn:
        raise BadInput(
            "no clip of the test set is fit for a canary, as the port heard no word in any: give --test-set speech, or "
            "--canary-against float"
        )
    return Canary(drawn, expected, language, limit)


def roll_out(alias: str, name: str, bundle: Path, canary: Canary, keep: int) -> DeployResult:
    """Upload a bundle, check and try it on the board, and make it current; else delete it and say why.

    Raises SessionFailed when the board is lost or its disk is full; what was current stays current in any case.
    """
    manifest = read_manifest(bundle)
    board = SshBoard(find_board(alias))
    with board.locked():
        before = _state(board, _ask(board, name, "begin", id=manifest.id))
        folder = Path(DEPLOYED) / name / "releases" / manifest.id
        try:
            board.put_all([(bundle / path, folder / path) for path in (*manifest.files, MANIFEST)])
            wrong = _ask(board, name, "check", id=manifest.id).get("wrong")
            if wrong != "":
                raise SessionFailed(
                    f"release {manifest.id} came damaged to board {alias} ({printable(str(wrong))}), nothing was "
                    "switched; run the same command again, it sends what is damaged"
                )
            said = _try(board, f"{before.root}/releases/{manifest.id}", canary)
            heard, wer, reason = check_canary(said, canary)
        except NightjarError:
            with contextlib.suppress(NightjarError):
                _ask(board, name, "drop", id=manifest.id)
            raise
        tried = {"canary_wer": wer, "canary_clips": len(canary.clips), "heard": heard}
        if reason:
            after = _state(board, _ask(board, name, "drop", id=manifest.id))
        else:
            after = _state(board, _ask(board, name, "switch", id=manifest.id, keep=keep))
        path = f"{after.root}/current/{SCRIPT}"
        here = {"name": name, "id": manifest.id, "before": before.current, "current": after.current, "path": path}
        return DeployResult.model_validate({**here, **tried, "reason": reason})


def roll_back(alias: str, name: str, to: str = "") -> DeployResult:
    """Make the release before the current one current again, or the one asked for; raises BadInput for none."""
    board = SshBoard(find_board(alias))
    with board.locked():
        there = _deployments(board)
        if not name and len(there) != 1:
            raise BadInput(
                f"board {alias} has {len(there)} deployments, {', '.join(there) or 'none'}: say which with --name; "
                f"`nightjar deploy --list --board {alias}` shows what there is"
            )
        name = name or next(iter(there))
        before = there[name].current if name in there else ""
        after = _state(board, _ask(board, name, "back", id=to))
    path = f"{after.root}/current/{SCRIPT}"
    return DeployResult(name=name, id=after.current, before=before, current=after.current, path=path)


def list_deployments(alias: str) -> dict[str, State]:
    """Return what is deployed on a board, by name."""
    with SshBoard(find_board(alias)) as board:
        return _deployments(board)


def check_canary(said: ProgramResult, canary: Canary) -> tuple[dict[str, str], float | None, str]:
    """Return what was heard by clip, its WER in percent, and why the canary failed, empty where it did not."""
    heard: dict[str, str] = {}
    for line in said.stdout.splitlines():  # past whatever a runtime prints
        with contextlib.suppress(ValueError, TypeError, KeyError):
            one = json.loads(line)
            heard[Path(one["file"]).stem] = str(one["text"])
    if trouble := said.trouble(CLIP_S * len(canary.clips)):
        return heard, None, f"its {SCRIPT} failed: {trouble}"
    if silent := [clip.id for clip in canary.clips if clip.id not in heard]:
        return heard, None, f"its {SCRIPT} said nothing of {silent[0]}"
    counts = {clip.id: count_errors(canary.expected[clip.id], heard[clip.id], canary.language) for clip in canary.clips}
    wer = corpus_wer(counts.values())
    if wer <= canary.limit:
        return heard, wer, ""
    worst = max(counts, key=lambda clip: counts[clip].errors)
    return (
        heard,
        wer,
        (
            f"canary WER {wer:.2f} % on {len(counts)} clips, limit {canary.limit:.2f} %; in {worst} it heard "
            f"{printable(heard[worst])!r}, expected {canary.expected[worst]!r}"
        ),
    )


def _try(board: SshBoard, release: str, canary: Canary) -> ProgramResult:
    """Let a release's own script hear the canary's clips, all in one run."""
    command = (board.python, f"{release}/{SCRIPT}", "--json", "--language", "{language}", "{clips}")
    program = BoardProgram(command=command, timeout_s=CLIP_S * len(canary.clips))
    with tempfile.TemporaryDirectory() as folder:
        clips = {clip.id: clip.audio for clip in canary.clips}
        return run_program(board, program, clips, Path(folder), language=canary.language)[ALL]


def _deployments(board: SshBoard) -> dict[str, State]:
    said = _ask(board, "", "list").get("deployments")
    return {str(name): _state(board, one) for name, one in (said if isinstance(said, dict) else {}).items()}


def _state(board: SshBoard, said: Any) -> State:
    try:
        return State.model_validate(said)
    except ValidationError as error:
        raise _nonsense(board, str(error.errors()[0]["msg"])) from error


def _ask(board: SshBoard, name: str, do: str, **more: Any) -> dict[str, Any]:
    asked = {"deployed": f"{board.entry.scratch}/{DEPLOYED}", "name": name, "do": do, **more}
    done = board.run([board.python, "-c", RELEASES.read_text(encoding="utf-8"), json.dumps(asked)], ANSWER_S)
    try:
        said = json.loads(done.stdout)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise _nonsense(board, printable(done.stderr or done.stdout))
    if "refused" in said:
        raise BadInput(
            f"board {board.alias}: {printable(str(said['refused']))}; `nightjar deploy --list --board {board.alias}` "
            "shows what there is"
        )
    if "error" in said:
        raise SessionFailed(
            f"board {board.alias} cannot keep releases: {printable(str(said['error']))}; what was current still is: "
            "mend it there, then run the same command again"
        )
    return said


def _nonsense(board: SshBoard, said: str) -> SessionFailed:
    return SessionFailed(
        f"board {board.alias} said nothing of its releases that can be read ({said}); look at python in boards.toml"
    )
