"""Check the stand-in: convert two ops, run them and quantize them."""

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.toolchains.sdk_calls import require_close


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Return the versions used and the error of LiteRT against torch; raises RuntimeError above 0.1 %."""
    import torch
    from ai_edge_quantizer import quantizer, recipe  # type: ignore[import-not-found]

    from targets.mtk.stand_in.runner import open_runner
    from targets.mtk.stand_in.toolchain.compile import convert

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.GELU()).eval().requires_grad_(False)
    convert(module, (torch.zeros(1, 8, 32),), Path("probe.tflite"))
    described = {"file": "probe.tflite", "inputs": [{"name": "x", "shape": [1, 8, 32]}]}
    runner = open_runner(Path.cwd(), {"probe": {**described, "outputs": [{"name": "y", "shape": [1, 8, 16]}]}})
    x = np.cos(np.arange(8 * 32, dtype=np.float32)).reshape(1, 8, 32)
    found, wanted = runner.run("probe", {"x": x})["y"], module(torch.from_numpy(x)).numpy()
    error = require_close("LiteRT", found, wanted, 1e-3)
    whole = quantizer.Quantizer("probe.tflite", recipe.dynamic_wi8_afp32()).quantize()
    if len(whole.quantized_model) >= Path("probe.tflite").stat().st_size:
        raise RuntimeError("ai-edge-quantizer made nothing smaller of two ops")
    names = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "torch")
    return {"error": error, **{name: importlib.metadata.version(name) for name in names}}
