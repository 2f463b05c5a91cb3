"""Find, check and open a folder as sherpa-onnx or icefall ship a streaming transducer."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightjar.device.part_io import first_line
from nightjar.errors import BadCheckpoint, UnknownName

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("encoder", "decoder", "joiner")
ALLOWED = "allowed is a folder of encoder, decoder and joiner (.onnx) and tokens.txt, as sherpa-onnx has them"
NEXT = "give another folder with --checkpoint"
STACK_LISTS = ("num_encoder_layers", "encoder_dims", "cnn_module_kernels", "left_context_len")
HEAD_LISTS = ("num_heads", "query_head_dims", "value_head_dims")  # of the second generation
QUANTIZED = (".int8.onnx", ".fp16.onnx", ".quant.onnx")  # shipped beside the float graphs, which a port starts from


@dataclass(frozen=True)
class Checkpoint:
    """One model: its graphs by part (onnx.ModelProto), their metadata, and its tokens by number."""

    graphs: dict[str, Any]
    metadata: dict[str, str]
    symbols: list[str]


def find_checkpoint(name: str) -> Path:
    """Find a shipped model by name; raises UnknownName."""
    folder = ROOT / "data" / name
    if not (folder / "encoder.onnx").is_file():
        raise UnknownName(f"no model {name!r} is shipped: give its folder with --checkpoint, see `nightjar models`")
    return folder


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder; names, shapes and everything else come from the graphs, never from a table of sizes.

    Raises BadCheckpoint in one line for a file that is missing, ambiguous or not a graph, for another kind of streaming
    model, and for states that differ from the metadata.
    """
    import onnx

    files = find_files(folder)
    graphs, metadata = {}, dict[str, str]()
    for part, file in files.items():
        if part == "tokens":
            continue
        try:
            graphs[part] = onnx.load(file, format="protobuf")
        except Exception as exc:  # protobuf's DecodeError, or whatever random bytes lead to
            raise BadCheckpoint(f"{file} is not an ONNX graph ({first_line(exc)}): {ALLOWED}; {NEXT}") from exc
        metadata |= {prop.key: prop.value for prop in graphs[part].metadata_props}
    checkpoint = Checkpoint(graphs, metadata, read_symbols(files["tokens"]))
    try:
        _check(checkpoint)
    except ValueError as exc:
        raise BadCheckpoint(f"{folder} is not a streaming Zipformer: {exc}; {ALLOWED}; {NEXT}") from exc
    return checkpoint


def find_files(folder: Path) -> dict[str, Path]:
    """Find the files of a folder by part, and `tokens`; raises BadCheckpoint for one that is missing or ambiguous.

    Quantized copies beside the float graphs are ignored.
    """
    if not folder.is_dir():
        raise BadCheckpoint(f"no folder {folder}: {ALLOWED}; {NEXT}")
    found = {}
    for part in PARTS:
        every = sorted(folder.glob(f"*{part}*.onnx"))
        floats = [path for path in every if not path.name.endswith(QUANTIZED)]
        if len(floats) != 1:
            what = f"no float {part}" if not floats else f"several files of {part}: {', '.join(p.name for p in floats)}"
            quantized = f" ({every[0].name} is quantized already)" if every and not floats else ""
            raise BadCheckpoint(
                f"{folder} has {what}{quantized}: {ALLOWED}, one of each; put these alone into a folder"
            )
        found[part] = floats[0]
    if not (folder / "tokens.txt").is_file():
        raise BadCheckpoint(f"{folder} has no tokens.txt: {ALLOWED}; {NEXT}")
    return {**found, "tokens": folder / "tokens.txt"}


def read_symbols(file: Path) -> list[str]:
    """Read tokens.txt, a symbol and its number per line; raises BadCheckpoint where a number is missing or double."""
    symbols: dict[int, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        symbol, _, index = line.rpartition(" ")
        if not index.isdigit() or int(index) in symbols:
            raise BadCheckpoint(
                f"{file}, line {number}: {line[:60]!r} is not a symbol and its number; {ALLOWED}; {NEXT}"
            )
        symbols[int(index)] = symbol or " "
    if sorted(symbols) != list(range(len(symbols))) or not symbols:
        raise BadCheckpoint(f"{file} does not number the tokens 0, 1, 2, … without gaps; {NEXT}")
    return [symbols[index] for index in range(len(symbols))]


def states_of(encoder: Any) -> list[tuple[str, str]]:
    """Pair the encoder's state inputs with their outputs: `cached_key_0`, `new_cached_key_0`."""
    outputs = {value.name for value in encoder.graph.output}
    inputs = [value.name for value in encoder.graph.input]
    missing = [name for name in inputs[1:] if f"new_{name}" not in outputs]
    if missing:
        raise ValueError(f"its encoder has no output new_{missing[0]} for the state {missing[0]}")
    return [(name, f"new_{name}") for name in inputs[1:]]


def _check(checkpoint: Checkpoint) -> None:
    """Raise ValueError where graphs, metadata and tokens contradict each other."""
    encoder, metadata = checkpoint.graphs["encoder"], checkpoint.metadata
    kind = metadata.get("model_type", "")
    if kind not in ("zipformer", "zipformer2"):
        raise ValueError(f"its encoder has model_type {kind or 'none'}, allowed are zipformer and zipformer2")
    for name in ("T", "decode_chunk_len", "context_size", "vocab_size"):
        if not metadata.get(name, "").isdigit():
            raise ValueError(f"its metadata has no number {name}")
    shapes = {value.name: value.type.tensor_type.shape.dim for value in encoder.graph.input}
    # An open number of streams is 1.
    inputs = {n: tuple(d.dim_value if d.HasField("dim_value") else 1 for d in shape) for n, shape in shapes.items()}
    first = next(iter(inputs))
    frames = int(metadata["T"])
    if first != "x" or inputs[first][1:] != (frames, 80):
        raise ValueError(f"its encoder takes {first} {inputs[first]} where its metadata has x (1, {frames}, 80)")
    if metadata.get("feature"):
        raise ValueError(f"it was trained on {metadata['feature']} features, and only Kaldi's are supported")
    states_of(encoder)
    for name, shape in expected_states(metadata).items():
        if name not in inputs:
            raise ValueError(f"its encoder has no state {name}, which its metadata has")
        if inputs[name] != shape:
            raise ValueError(f"the state {name} is {inputs[name]} where its metadata has {shape}")
    if int(metadata["vocab_size"]) != len(checkpoint.symbols):
        raise ValueError(f"its decoder has {metadata['vocab_size']} tokens and tokens.txt {len(checkpoint.symbols)}")


def expected_states(metadata: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Return the states of one stream by the metadata (sherpa-onnx, csrc/online-zipformer*-model.cc).

    Raises ValueError where a list is missing or of another length.
    """
    first = metadata["model_type"] == "zipformer"
    lists = []
    for name in (*STACK_LISTS, *(("attention_dims",) if first else HEAD_LISTS)):
        try:
            lists.append([int(value) for value in metadata[name].split(",")])
        except (KeyError, ValueError):
            raise ValueError(f"its metadata has no list {name}") from None
    if len({len(each) for each in lists}) != 1:
        raise ValueError("the lists of its metadata are of different lengths")
    found: dict[str, tuple[int, ...]] = {}
    numbers = itertools.count()
    for i, (layers, width, kernel, left, *others) in enumerate(zip(*lists, strict=True)):
        if first:
            (attention,) = others
            keys = {"cached_key": attention, "cached_val": attention // 2, "cached_val2": attention // 2}
            found |= {f"cached_len_{i}": (layers, 1), f"cached_avg_{i}": (layers, 1, width)}
            found |= {f"{kind}_{i}": (layers, left, 1, size) for kind, size in keys.items()}
            found |= {f"{kind}_{i}": (layers, 1, width, kernel - 1) for kind in ("cached_conv1", "cached_conv2")}
            continue
        heads, query, value = others
        for layer in itertools.islice(numbers, layers):
            found |= {f"cached_key_{layer}": (left, 1, query * heads)}
            found |= {f"cached_nonlin_attn_{layer}": (1, 1, left, 3 * width // 4)}
            found |= {f"{kind}_{layer}": (left, 1, value * heads) for kind in ("cached_val1", "cached_val2")}
            found |= {f"{kind}_{layer}": (1, width, kernel // 2) for kind in ("cached_conv1", "cached_conv2")}
    return found if first else found | {"embed_states": (1, 128, 3, 19), "processed_lens": (1,)}
