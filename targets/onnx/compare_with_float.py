"""Compare a binary with its float graphs, part by part, on stored samples.

    python -m targets.onnx.compare_with_float GRAPHS BINARY SAMPLES [--limit N] [--threads N]

SAMPLES is a calibration set, of other speech than the binary was calibrated on. Both sides get the same float inputs,
so a part's figure is its own loss without that of the parts before it.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np

from nightjar.quantization.calibration_set import CalibrationSet, Tensors
from targets.onnx.runner import OnnxRunner, open_runner


def measure(
    graphs: Path, binary: Path, samples: Path, limit: int = 16, threads: int = 1
) -> dict[str, dict[str, float]]:
    """Return per part: SNR of all outputs in dB (mean, min), share of equal argmax, and best ms per run of both sides.

    Argmax is over the last axis of the first output, and has a meaning where that is logits.
    """
    found = CalibrationSet.open(samples)
    exact, quantized = (
        open_runner(folder, json.loads((folder / name).read_text(encoding="utf-8"))["parts"], {"threads": threads})
        for folder, name in ((graphs, "model.json"), (binary, "binary.json"))
    )
    figures = {}
    for part in found.parts:
        noise_db, equal = [], []
        seconds: tuple[list[float], list[float]] = ([], [])
        for sample in itertools.islice(found.samples(part), limit):
            wanted, got = (_timed(r, part, sample, s) for r, s in zip((exact, quantized), seconds, strict=True))
            noise_db.append(_snr_db(wanted, got))
            first = next(iter(wanted))
            equal.append(float((wanted[first].argmax(-1) == got[first].argmax(-1)).mean()))
        figures[part] = {
            "samples": len(equal),
            "snr_db": round(float(np.mean(noise_db)), 2),
            "snr_db_min": round(min(noise_db), 2),
            "same_argmax": round(float(np.mean(equal)), 4),
            "float_ms": round(1000 * min(seconds[0]), 2),
            "binary_ms": round(1000 * min(seconds[1]), 2),
        }
    return figures


def _timed(runner: OnnxRunner, part: str, sample: Tensors, seconds: list[float]) -> Tensors:
    start = time.perf_counter()
    outputs = runner.run(part, sample)
    seconds.append(time.perf_counter() - start)
    return outputs


def _snr_db(exact: Tensors, found: Tensors) -> float:
    """Compare the power of all outputs with that of their error."""
    power = sum(float((value.astype(np.float64) ** 2).sum()) for value in exact.values())
    error = sum(float(((exact[name] - found[name]).astype(np.float64) ** 2).sum()) for name in exact)
    return float(10 * np.log10(power / max(error, 1e-30)))


def main() -> None:
    """Print the figures, one part per line."""
    parser = argparse.ArgumentParser(description=measure.__doc__)
    for name in ("graphs", "binary", "samples"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--limit", type=int, default=16, help="samples per part")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for part, figures in measure(**vars(options)).items():
        print(part, " ".join(f"{name}={value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
