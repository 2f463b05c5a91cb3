"""Compare a binary with its float graphs, part by part, on stored samples.

    python -m targets.onnx.compare_with_float GRAPHS BINARY SAMPLES [--limit N] [--threads N]

SAMPLES is a calibration set, of other speech than the binary was calibrated on. Both sides get the same float inputs,
so a part's figure is its own loss without that of the parts before it.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np

from nightjar.files import read_json
from nightjar.quantization.calibration_set import CalibrationSet, Tensors
from nightjar.quantization.part_chain import snr_decibels
from targets.onnx.runner import OnnxRunner, open_runner


def measure(
    graphs: Path, binary: Path, samples: Path, limit: int = 16, threads: int = 1
) -> dict[str, dict[str, float]]:
    """Return per part: SNR of all outputs in dB (mean, min), share of equal argmax, and best ms per run of both sides.

    Argmax is over the last axis of the first output, and has a meaning where that is logits.
    """
    found = CalibrationSet.open(samples)
    files = ((graphs, "model.json"), (binary, "binary.json"))
    runners = [open_runner(folder, read_json(folder / name)["parts"], {"threads": threads}) for folder, name in files]
    figures = {}
    for part in found.parts:
        noise_db, equal, seconds = [], [], []
        for sample in itertools.islice(found.samples(part), limit):
            (wanted, float_s), (got, binary_s) = (_timed(runner, part, sample) for runner in runners)
            noise_db.append(snr_decibels([(wanted, got)]))
            first = next(iter(wanted))
            equal.append(float((wanted[first].argmax(-1) == got[first].argmax(-1)).mean()))
            seconds.append((float_s, binary_s))
        figures[part] = {
            "samples": len(equal),
            "snr_db": round(float(np.mean(noise_db)), 2),
            "snr_db_min": round(min(noise_db), 2),
            "same_argmax": round(float(np.mean(equal)), 4),
            "float_ms": round(1000 * min(float_s for float_s, _ in seconds), 2),
            "binary_ms": round(1000 * min(binary_s for _, binary_s in seconds), 2),
        }
    return figures


def _timed(runner: OnnxRunner, part: str, sample: Tensors) -> tuple[Tensors, float]:
    start = time.perf_counter()
    return runner.run(part, sample), time.perf_counter() - start


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
