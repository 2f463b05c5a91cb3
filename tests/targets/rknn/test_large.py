"""Graphs whose weights lie beside them, with the real toolkit: it compiles what it compiles from graphs in one file."""

from pathlib import Path

import pytest

from models.whisper.export import export
from nightjar.graphs import onnx_file
from nightjar.plugins.recipe import Recipe
from nightjar.toolchains.environment import Toolchain
from targets import rknn as target

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")]


@pytest.mark.parametrize("decoder", ["static", "window"])  # `window` renames the encoder's tensors
def test_the_toolkit_compiles_the_same_from_weights_beside_the_graph(
    decoder: str, sdk: Toolchain, random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(window_s=2, decoder=decoder, decoder_length=16, host_embedding=True)
    for name, limit in (("one file", onnx_file.MOST_BYTES), ("two files", 10_000)):
        monkeypatch.setattr(onnx_file, "MOST_BYTES", limit)
        export(random_checkpoint, recipe, tmp_path / name / "graphs")
        target.compile(tmp_path / name / "graphs", None, target.Options(), tmp_path / name / "binary")
        assert (tmp_path / name / "graphs" / "encoder.onnx.data").is_file() == (name == "two files")
    for file in ("encoder.sim.onnx", "decoder.sim.onnx"):  # what the toolkit compiles, weights included
        one, two = ((tmp_path / name / "binary" / file).read_bytes() for name in ("one file", "two files"))
        assert one == two
