"""A stream hears what sherpa-onnx hears, and says where it cannot go on."""

from typing import Any

import numpy as np
import pytest

from models.zipformer.decode import EncodedClip, decode, decode_clips, encode, features
from models.zipformer.stock import load_stock
from models.zipformer.stream import Search, StreamError, cut_frames, run_chunk, watched_chunks
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip
from tests.models.zipformer.conftest import Exported, Through


def wave_of(clip: Clip) -> Any:
    return load_audio(clip.audio).astype(np.float32) / 32768.0


@pytest.mark.slow
@pytest.mark.parametrize("which", ["nano", "second"])
def test_says_token_for_token_what_sherpa_onnx_says(
    which: str, clips: list[Clip], request: pytest.FixtureRequest
) -> None:
    exported: Exported = request.getfixturevalue(which)
    stock, clips = load_stock(exported.checkpoint), clips[:60]
    heard = [stock.transcribe(clip.audio, "en")["tokens"] for clip in clips]
    ours = []
    for clip in clips:
        encoded = encode(exported.runner, features(wave_of(clip), exported.model), exported.model)
        ours.append(decode(exported.runner, encoded, exported.model)["tokens"])
    assert len(clips) >= 50
    assert sum(len(tokens) for tokens in heard) > 2 * len(clips)  # they say something
    assert ours == heard


def test_a_chunk_is_cut_where_the_runtime_cuts_it(nano: Exported) -> None:
    frames, shift = nano.model["chunk"]["frames"], nano.model["chunk"]["shift"]
    numbered = np.arange(3 * frames, dtype=np.float32)[:, None].repeat(80, 1)
    assert cut_frames(numbered[:frames], nano.model) == []  # a frame more must be there
    assert len(cut_frames(numbered[: frames + 1], nano.model)) == 1
    found = cut_frames(numbered, nano.model)
    assert [chunk[0, 0] for chunk in found] == [number * shift for number in range(len(found))]
    assert all(chunk.shape == (frames, 80) for chunk in found)
    assert len(found) >= 2


def test_the_first_context_is_no_token_and_a_blank(nano: Exported) -> None:
    assert Search(nano.runner, nano.model).context == [-1, 0]


@pytest.mark.parametrize(
    ("spoiled", "value", "said"),
    [
        ("new_cached_avg_2", np.nan, "chunk 2: new_cached_avg_2 holds NaN"),
        ("encoder_out", np.inf, "chunk 2: encoder_out holds infinity"),
        ("new_cached_key_0", None, "chunk 2: new_cached_key_0 has shape"),
    ],
)
def test_what_no_state_can_go_on_from_is_said_with_chunk_and_tensor(
    spoiled: str, value: float | None, said: str, nano: Exported, clips: list[Clip]
) -> None:
    def change(call: int, outputs: dict[str, Any]) -> dict[str, Any]:
        if call == 2:
            array = outputs[spoiled].copy()
            if value is None:
                array = array[:, :-1]
            else:
                array.flat[5] = value
            outputs[spoiled] = array
        return outputs

    with pytest.raises(StreamError, match=said):
        encode(Through(nano.runner, change), features(wave_of(clips[0]), nano.model), nano.model)


def test_agreement_follows_the_path_of_another(nano: Exported, clips: list[Clip]) -> None:
    encoded = encode(nano.runner, features(wave_of(clips[0]), nano.model), nano.model)
    free = decode(nano.runner, encoded, nano.model)
    spoken = [row for row, token in enumerate(free["path"]) if token]
    other = list(free["path"])
    other[spoken[0]] = other[spoken[0]] % 60 + 3  # what float said there is another word
    jobs = [EncodedClip("same", encoded, free["path"], []), EncodedClip("other", encoded, other, [])]
    heard = dict(decode_clips(nano.runner, jobs, nano.model))
    assert heard["same"]["agree"] == [len(spoken), len(spoken)]
    matching, of = heard["other"]["agree"]
    assert matching < of
    assert len(heard["same"]["watched"]["norm"]) == len(free["path"]) == free["steps"]
    assert heard["same"]["tokens"] == heard["other"]["tokens"] == free["tokens"]


def test_states_are_kept_of_so_many_chunks(nano: Exported, clips: list[Clip]) -> None:
    chunks = features(np.concatenate([wave_of(clip) for clip in clips[:30]]), nano.model)
    count = len(chunks["x"])
    kept = encode(nano.runner, chunks, nano.model, ["encoder_out", "new_cached_avg_1"])
    watched = watched_chunks(count)
    assert count > 48 >= len(watched)
    assert watched[0] == 0
    assert watched[-1] == count - 1
    assert sorted(set(watched)) == watched
    assert kept["new_cached_avg_1"].shape[:2] == (1, len(watched))
    assert kept["encoder_out"].shape[:2] == (1, count * nano.model["chunk"]["rows"])
    states = {s["input"]: np.zeros_like(v) for s, v in zip(nano.model["states"], _zeros(nano), strict=True)}
    for number in range(watched[20] + 1):
        _, states, outputs = run_chunk(nano.runner, chunks["x"][number], states, nano.model, number)
    assert np.array_equal(kept["new_cached_avg_1"][0, 20], outputs["new_cached_avg_1"])


def _zeros(exported: Exported) -> list[Any]:
    inputs = {entry["name"]: entry for entry in exported.model["parts"]["encoder"]["inputs"]}
    return [np.zeros(inputs[s["input"]]["shape"], inputs[s["input"]]["dtype"]) for s in exported.model["states"]]
