"""Several clips in one decoder run: each is heard as it is alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from models.whisper import decode, protocols
from models.whisper.export import export
from nightjar.plugins.recipe import Recipe
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import load_speech
from targets.onnx import compile
from targets.onnx.batched_decoder import count_lanes
from targets.onnx.options import Options
from targets.onnx.runner import open_runner
from tests.models.whisper.reference import agree

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")
ONE = {"threads": 1}


NANO = Path(__file__).resolve().parents[3] / "data" / "whisper-nano"
CLIPS = load_speech(NANO / "evaluation.jsonl")[:60:6]


@pytest.fixture(scope="module", params=[False, True], ids=["tokens", "embedding"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lanes")
    recipe = Recipe(window_s=10, decoder="cached", decoder_length=64, host_embedding=request.param)
    export(NANO / "whisper-nano.pt", recipe, folder / "graphs", clamp=True)
    compile(folder / "graphs", None, Options(), folder / "binary")
    return folder


def read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def jobs(
    runner: Any, model: dict[str, Any], count: int, forced: list[int] | None = None
) -> Iterator[decode.EncodedClip]:
    for clip in CLIPS[:count]:
        features = decode.features(load_audio(clip.audio).astype(np.float32) / 32768, model)
        yield decode.EncodedClip(clip.id, decode.encode(runner, features, model), forced)


def test_clips_are_heard_in_lanes_as_they_are_alone(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "FIRST_ROWS", 4)  # so that the caches grow
    model, parts = read(built / "graphs", "model.json"), read(built / "binary", "binary.json")["parts"]
    tables = {path.stem: np.load(path) for path in (built / "binary").glob("*_embedding.npy")}
    static, free = open_runner(built / "graphs", model["parts"], ONE), open_runner(built / "binary", parts, ONE)
    alone = {
        job.name: decode.decode(static, job.encoded, model, "en", tables) for job in jobs(static, model, len(CLIPS))
    }
    assert len({len(heard["tokens"]) for heard in alone.values()}) > 3, "lanes must end at different times"
    for lanes in (2, 8):
        found = {}
        for name, heard in decode.decode_clips(free, jobs(free, model, len(CLIPS)), model, "en", tables, lanes):
            assert heard.pop("seconds").keys() == {"total"}  # no clock was given
            found[name] = heard
        assert found == alone


def test_agreement_in_lanes_is_that_of_a_forced_run(built: Path) -> None:
    model, parts = read(built / "graphs", "model.json"), read(built / "binary", "binary.json")["parts"]
    tables = {path.stem: np.load(path) for path in (built / "binary").glob("*_embedding.npy")}
    static, free = open_runner(built / "graphs", model["parts"], ONE), open_runner(built / "binary", parts, ONE)
    first = next(jobs(static, model, 1))
    text = decode.decode(static, first.encoded, model, "en", tables)["tokens"]
    forced = [*text[:2], (text[2] + 1) % 1000, *text[3:]]  # leaves the text and comes back to it
    expected = {
        job.name: [agree(static, job.encoded, model, forced, "en", tables), len(forced) + 1]
        for job in jobs(static, model, 5)
    }
    heard = decode.decode_clips(free, jobs(free, model, 5, forced), model, "en", tables, 4)
    assert {name: result["agree"] for name, result in heard} == expected
    assert 2 < expected[first.name][0] <= len(forced)


def test_watched_logits_are_those_of_the_text_it_was_asked_for(built: Path) -> None:
    model, parts = read(built / "graphs", "model.json"), read(built / "binary", "binary.json")["parts"]
    tables = {path.stem: np.load(path) for path in (built / "binary").glob("*_embedding.npy")}
    static, free = open_runner(built / "graphs", model["parts"], ONE), open_runner(built / "binary", parts, ONE)
    own = {
        name: heard
        for name, heard in decode.decode_clips(
            static, (job._replace(watch=[]) for job in jobs(static, model, 5)), model, "en", tables
        )
    }
    for heard in own.values():
        steps = len(heard["tokens"]) + 1
        assert [len(heard["watched"][kind]) for kind in ("ids", "logits", "norm")] == [steps] * 3
        for token, ids, logits in zip(
            heard["tokens"], heard["watched"]["ids"], heard["watched"]["logits"], strict=False
        ):
            assert token in ids
            assert len(logits) == len(set(ids)) == 16
    other = own[CLIPS[0].id]  # one text forced on all: watched from where each leaves it, too
    forced = [job._replace(forced=other["tokens"], watch=other["watched"]["ids"]) for job in jobs(free, model, 5)]
    found = dict(decode.decode_clips(free, forced, model, "en", tables, 4))
    assert all(heard["watched"]["ids"] == other["watched"]["ids"] for heard in found.values())
    np.testing.assert_allclose(found[CLIPS[0].id]["watched"]["logits"], other["watched"]["logits"], atol=1e-3)
    assert not np.allclose(found[CLIPS[1].id]["watched"]["logits"], other["watched"]["logits"], atol=1)


def test_the_graph_takes_any_lanes_and_rows_and_the_rest_is_fixed(built: Path) -> None:
    part = read(built / "binary", "binary.json")["parts"]["decoder"]
    assert part["lanes"] == 16
    model = read(built / "binary", "model.json")
    d = model["dims"]["n_text_state"]
    session = onnxruntime.InferenceSession(built / "binary" / part["file"])
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert shapes["self_k_0"] == ["lanes", "rows", d]
    assert shapes["cross_k_0"] == ["heads", d // model["dims"]["n_text_head"], model["n_audio_ctx"]]
    assert shapes["mask"] == ["lanes", 1, 1, "rows_and_own"]


def test_lanes_fit_memory() -> None:
    def decoder(rows: int) -> dict[str, Any]:
        return {"inputs": [{"name": "mask", "shape": [1]}, {"name": "cross_k_0", "shape": [1, rows, 2**20]}]}

    assert [count_lanes(decoder(rows)) for rows in (1, 16, 40, 1000)] == [16, 8, 3, 1]
    assert count_lanes({"inputs": [{"name": "audio", "shape": [1, 1500, 384]}]}) == 1
