"""Check MediaTek's converter: trace and convert two ops."""

from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Return the versions of the converter and of torch."""
    import mtk_converter  # type: ignore[import-not-found]  # in the vendor's environment only
    import torch

    from targets.mtk.toolchain.compile import convert, open_converter, set_attributes, trace

    module = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU()).eval().requires_grad_(False)
    inputs = (torch.zeros(1, 8, 32),)
    trace(torch, module, inputs, Path("probe.pt"))
    converter = open_converter(mtk_converter, Path("probe.pt"), inputs)
    set_attributes(converter, {"quantize": False})
    convert(converter, Path("probe.tflite"))
    return {"mtk_converter": str(getattr(mtk_converter, "__version__", "unknown")), "torch": str(torch.__version__)}
