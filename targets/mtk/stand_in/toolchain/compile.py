"""Convert and quantize parts inside the stand-in's environment; three kinds of job, all in the working folder.

convert   PART.npz, of each part                   -> PART.tflite, float, of the model's own modules
extremes  PART.tflite, samples/*.npz               -> extremes.json, every float tensor's (low, high) of each sample
quantize  PART.tflite, ranges.json                 -> quantized.tflite
"""

import contextlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.toolchains.sdk_calls import require_output
from targets.mtk.toolchain.compile import rebuild


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job; return {}."""
    kind, file = job["kind"], Path(f"{job.get('part')}.tflite")
    if kind == "convert":  # all parts in one process: importing litert-torch takes longer than a small part
        for each in job["parts"]:
            module, inputs = rebuild(each)
            if job["to_quantize"]:
                keep_gains_apart(module)
            convert(module, inputs, Path(f"{each['part']}.tflite"))
    elif kind == "extremes":
        found = extremes(file, sorted(Path("samples").glob("*.npz")))
        Path("extremes.json").write_text(json.dumps(found), encoding="utf-8")
    else:
        ranges = json.loads(Path("ranges.json").read_text(encoding="utf-8"))
        quantize(file, job["ops"], ranges, Path("quantized.tflite"))
    return {}


def keep_gains_apart(module: Any) -> None:
    """Keep a norm's gain out of the weights behind it, where LiteRT's converter multiplies it in.

    A norm is one operator on the NPU, and weights multiplied by different gains lose 10 dB at 8 bits. A maximum with a
    value below every activation keeps the two apart.
    """
    import torch

    for norm in module.modules():
        if isinstance(norm, torch.nn.LayerNorm):
            norm.register_forward_hook(lambda norm, inputs, output: torch.clamp_min(output, -1e30))


def convert(module: Any, inputs: tuple[Any, ...], out: Path) -> None:
    """Write a module as float .tflite."""
    import litert_torch  # type: ignore[import-not-found]
    import torch

    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        litert_torch.convert(module, inputs).export(str(out))
    require_output("litert-torch", out)


def extremes(file: Path, samples: list[Path]) -> dict[str, list[tuple[float, float]]]:
    """Run every sample and return the (low, high) of each float tensor, in order of the samples."""
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-not-found]

    from targets.mtk.stand_in.runner import in_graph_order

    interpreter = Interpreter(model_path=str(file), experimental_preserve_all_tensors=True, num_threads=2)
    interpreter.allocate_tensors()
    details = in_graph_order(interpreter.get_input_details())
    activations = [d for d in interpreter.get_tensor_details() if d["dtype"] == np.float32 and d["shape"].size]
    found: dict[str, list[tuple[float, float]]] = {}
    for number, path in enumerate(samples, 1):
        with np.load(path) as sample:
            for i, detail in enumerate(details):
                interpreter.set_tensor(detail["index"], sample[f"arr_{i}"].astype(detail["dtype"], copy=False))
        interpreter.invoke()
        for detail in activations:
            with contextlib.suppress(ValueError):  # a constant that LiteRT has packed
                values = interpreter.get_tensor(detail["index"])
                if not np.isfinite(values).all():
                    raise RuntimeError(f"tensor {detail['name']} is not finite for a calibration sample")
                found.setdefault(detail["name"], []).append((float(values.min()), float(values.max())))
        print(f"Collecting: {100 * number // len(samples)}%|#| {number}/{len(samples)}", flush=True)
    return found


def quantize(file: Path, ops: list[Any], ranges: dict[str, list[float]], out: Path) -> None:
    """Quantize operators; ops: (name, output tensors, activation bits). The others stay float.

    Weights have 8 bits and a scale per channel, 8-bit activations an offset, 16-bit ones none. An operator that
    ai-edge-quantizer does not support in 16 bits stays float.
    """
    from ai_edge_quantizer import qtyping, quantizer  # type: ignore[import-not-found]

    integer, static = qtyping.TensorDataType.INT, qtyping.ComputePrecision.INTEGER
    per_channel, per_tensor = qtyping.QuantGranularity.CHANNELWISE, qtyping.QuantGranularity.TENSORWISE
    quantization = quantizer.Quantizer(str(file))
    for op, outputs, bits in ops:
        activations = qtyping.TensorQuantizationConfig(bits, bits == 16, per_tensor, integer)
        granularity = per_channel if op in ("FULLY_CONNECTED", "CONV_2D") else per_tensor
        weights = qtyping.TensorQuantizationConfig(8, True, granularity, integer)
        with contextlib.suppress(ValueError):  # no policy for this operator: it stays float, and the audit says so
            quantization.update_quantization_recipe(
                regex="^" + re.escape(";".join(outputs)) + ";?$",
                operation_name=qtyping.TFLOperationName(op),
                op_config=qtyping.OpQuantizationConfig(
                    activation_tensor_config=activations, weight_tensor_config=weights, compute_precision=static
                ),
                algorithm_key="min_max_uniform_quantize",
            )
    limits = {
        name: {"min": np.array(low, np.float32), "max": np.array(high, np.float32)}
        for name, (low, high) in ranges.items()
    }
    quantization.quantize(limits, serialize_to_path=str(out), enable_progress_report=False)
    require_output("ai-edge-quantizer", out)
