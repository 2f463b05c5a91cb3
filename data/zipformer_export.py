"""Write a transducer as sherpa-onnx reads it: encoder, decoder and joiner as ONNX with metadata, and tokens.txt."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from zipformer_model import LOOKAHEAD, Encoder, Transducer

OPSET = 13


class Streamed(nn.Module):
    """The encoder's streaming pass with states as inputs and outputs of their own."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        encoded, kept = self.encoder.stream(x, states)
        return (encoded, *kept)


def export(model: Transducer, names: list[str], folder: Path) -> None:
    """Write encoder.onnx, decoder.onnx, joiner.onnx and tokens.txt into a folder.

    Inputs, outputs, their order, open batch axes and metadata are those of icefall's export-onnx.py for
    pruned_transducer_stateless7_streaming, so that sherpa-onnx takes the files for one of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = model.shape
    states = model.encoder.initial_states()
    batch = {"cached_key": 2, "cached_val": 2, "cached_val2": 2}  # axis of the others: 1
    axes = {name: {batch.get(name.rpartition("_")[0], 1): "N"} for name in states}
    chunk = 2 * shape.chunk
    lists = {
        "num_encoder_layers": shape.layers,
        "encoder_dims": [shape.width] * len(shape.layers),
        "attention_dims": [shape.attention] * len(shape.layers),
        "cnn_module_kernels": [shape.kernel] * len(shape.layers),
        "left_context_len": [shape.left // factor for factor in shape.downsampling],
    }
    metadata = {
        "model_type": "zipformer",
        "version": "1",
        "model_author": "nightjar",
        "decode_chunk_len": str(chunk),
        "T": str(chunk + LOOKAHEAD),
        **{name: ",".join(map(str, values)) for name, values in lists.items()},
    }
    x = torch.zeros(1, chunk + LOOKAHEAD, shape.n_mels)
    outputs = ["encoder_out", *(f"new_{name}" for name in states)]
    open_axes = {"x": {0: "N"}, "encoder_out": {0: "N"}, **axes, **{f"new_{name}": axis for name, axis in axes.items()}}
    streamed = Streamed(model.encoder)
    write(streamed, (x, *states.values()), folder / "encoder.onnx", ["x", *states], outputs, open_axes, metadata)
    row = torch.zeros(1, shape.joiner)
    write(
        model.decoder,
        (torch.zeros(1, shape.context, dtype=torch.int64),),
        folder / "decoder.onnx",
        ["y"],
        ["decoder_out"],
        {"y": {0: "N"}, "decoder_out": {0: "N"}},
        {"context_size": str(shape.context), "vocab_size": str(len(names))},
    )
    write(
        model.joiner,
        (row, row),
        folder / "joiner.onnx",
        ["encoder_out", "decoder_out"],
        ["logit"],
        {name: {0: "N"} for name in ("encoder_out", "decoder_out", "logit")},
        {"joiner_dim": str(shape.joiner)},
    )
    lines = "".join(f"{name} {number}\n" for number, name in enumerate(names))
    (folder / "tokens.txt").write_text(lines, encoding="utf-8")


def write(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    file: Path,
    input_names: list[str],
    output_names: list[str],
    axes: dict[str, dict[int, str]],
    metadata: dict[str, str],
) -> None:
    """Export one module with the tracing exporter and give the file its metadata."""
    with _quiet():
        torch.onnx.export(
            module.eval(),
            inputs,
            str(file),
            input_names=input_names,
            output_names=output_names,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    content = onnx.load(file)
    onnx.helper.set_model_props(content, metadata)
    onnx.save(content, file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
