"""Hold the shipped streaming transducer to what data/README.md promises."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

DATA = Path(__file__).resolve().parents[2] / "data"
sys.path.insert(0, str(DATA))  # data/ holds scripts, not an installed package

import make_zipformer_nano  # noqa: E402
import zipformer_corpus  # noqa: E402
import zipformer_export  # noqa: E402
import zipformer_layers  # noqa: E402
import zipformer_model  # noqa: E402
import zipformer_training  # noqa: E402
from nano_check import read_manifest  # noqa: E402

# Whisper leaves its own english.json open.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:unclosed file .*english.json:ResourceWarning")]

SHIPPED = DATA / "zipformer-nano"
SMALL = zipformer_layers.Shape(width=16, attention=16, heads=2, feedforward=16, channels=(4, 4, 8), joiner=16)


@pytest.fixture
def small() -> zipformer_model.Transducer:
    """A transducer of the shipped kind with few, random weights."""
    torch.manual_seed(3)
    return zipformer_model.Transducer(SMALL, 12, (5, 4, 4)).eval()


def test_the_shipped_files_are_small_and_hear_the_shipped_list(capsys: pytest.CaptureFixture[str]) -> None:
    files = [SHIPPED / name for name in make_zipformer_nano.PARTS]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert make_zipformer_nano.judge(SHIPPED, DATA / "whisper-nano"), capsys.readouterr().out
    said = capsys.readouterr().out
    assert f"of {sum(len(row['text'].split()) for row in read_manifest(SHIPPED / 'evaluation.jsonl'))} words" in said


def test_the_contract_is_icefall_s() -> None:
    model = onnx.load(SHIPPED / "encoder.onnx")
    names = [value.name for value in model.graph.input]
    kinds = ("len", "avg", "key", "val", "val2", "conv1", "conv2")
    assert names == ["x", *(f"cached_{kind}_{stack}" for kind in kinds for stack in range(5))]
    assert [value.name for value in model.graph.output] == ["encoder_out", *(f"new_{name}" for name in names[1:])]
    whole = [v.name for v in model.graph.input if v.type.tensor_type.elem_type == onnx.TensorProto.INT64]
    assert whole == [f"cached_len_{stack}" for stack in range(5)]
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert metadata["model_type"] == "zipformer"
    assert len(metadata["encoder_dims"].split(",")) == 5


def test_streaming_computes_what_the_training_pass_does(small: zipformer_model.Transducer) -> None:
    """Chunk-wise and one-shot are one model: the keys that a chunk sees are those that streaming keeps for it."""
    encoder, chunk = small.encoder, SMALL.chunk
    x = torch.randn(2, 2 * chunk * 5 + zipformer_model.LOOKAHEAD, 80) * 4 - 6
    with torch.no_grad():
        whole, _ = encoder(x)
        states, rows = list(encoder.initial_states(2).values()), []
        for number in range(5):
            part = x[:, 2 * chunk * number : 2 * chunk * (number + 1) + zipformer_model.LOOKAHEAD]
            row, states = encoder.stream(part, states)
            rows.append(row)
    assert torch.allclose(torch.cat(rows, 1), whole, atol=2e-5)


def test_the_export_streams_as_the_model_does(small: zipformer_model.Transducer, tmp_path: Path) -> None:
    import onnxruntime as ort

    zipformer_export.export(small, [f"t{number}" for number in range(12)], tmp_path)
    session = ort.InferenceSession(str(tmp_path / "encoder.onnx"))
    named = small.encoder.initial_states(1)
    states = {name: value.numpy() for name, value in named.items()}
    kept = list(named.values())
    outputs = [value.name for value in session.get_outputs()]
    for _ in range(3):
        x = torch.randn(1, 2 * SMALL.chunk + zipformer_model.LOOKAHEAD, 80) * 4 - 6
        found = dict(zip(outputs, session.run(None, {"x": x.numpy(), **states}), strict=True))
        states = {name: found[f"new_{name}"] for name in states}
        with torch.no_grad():
            rows, kept = small.encoder.stream(x, kept)
        assert np.allclose(found["encoder_out"], rows.numpy(), atol=2e-5)


def test_the_loss_is_the_sum_over_all_paths() -> None:
    torch.manual_seed(1)
    frames, tokens = 4, torch.tensor([[2, 1, 0], [3, 0, 0]])  # the second says one token
    counts = torch.tensor([2, 1])
    logits = torch.randn(2, frames, 4, 5)
    found = zipformer_training.transducer_loss(logits, tokens, counts)
    scores = logits.log_softmax(-1)
    for clip in range(2):
        paths = []
        for said in product((False, True), repeat=frames):  # each frame says the next token or none
            if sum(said) != counts[clip]:
                continue
            row, total = 0, torch.zeros(())
            for t, speaks in enumerate(said):
                total = total + scores[clip, t, row, int(tokens[clip, row]) if speaks else 0]
                row += speaks
            paths.append(total)
        assert torch.allclose(-torch.stack(paths).logsumexp(0), found[clip], atol=1e-5)


def test_training_learns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames, n_clips = 96, 16
    texts = [zipformer_corpus.WORDS[number % 2] for number in range(n_clips)]
    clips = [rng.normal(-8 + 6 * (number % 2), 0.3, (frames, 80)) for number in range(n_clips)]
    labels = np.repeat([0, 1] * (n_clips // 2), frames // 2)[:, None].repeat(3, 1).astype(np.uint8)
    corpus = zipformer_corpus.Corpus(
        np.concatenate(clips).astype(np.float16), labels, np.arange(n_clips + 1) * frames, texts, ["", "a"]
    )
    schedule = zipformer_training.Schedule(40, 5e-3, 800, save_steps=20)
    lost: list[float] = []
    real = zipformer_training.losses

    def watched(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type]
        lost.append(found[0].item())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipformer_training, "losses", watched)
        zipformer_training.train(
            corpus,
            schedule,
            shape=SMALL,
            seed=0,
            device="cpu",
            state_file=tmp_path / "state.pt",
            development_wer=lambda model: "unheard",
        )
    assert np.mean(lost[-5:]) < 0.5 * np.mean(lost[:5])
    assert (tmp_path / "state.pt").exists()
