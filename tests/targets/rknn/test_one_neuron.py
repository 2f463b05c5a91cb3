"""A tensor that holds one value in the toolkit's sample gets the range of all samples, not that value."""

from pathlib import Path

import numpy as np

from targets.rknn.ranges import write_ranges
from tests.nightjar import planted

ENTRY = """\
    first-rs:
        qtype: asym
        qmethod: layer
        dtype: int8
        min:
        -   {low}
        max:
        -   0.0
        scale:
        -   0.01
        zero_point:
        -   127
        ori_min:
        -   {low}
        ori_max:
        -   {low}
"""


def test_the_range_of_a_branch_of_one_neuron_is_that_of_all_samples(tmp_path: Path) -> None:
    w = planted.Writer(0)
    w.op("Relu", [w.linear("x", "first", (4, 1), np.array([[1.0], [0.5], [-2.0], [0.25]]))], "second")
    model = w.model({"x": (1, 1, 4)}, {"second": (1, 1, 1)})
    rng = np.random.default_rng(1)
    samples = [{"x": rng.normal(0, 1, (1, 1, 4)).astype(np.float32)} for _ in range(20)]
    values = [float(sample["x"].ravel() @ [1.0, 0.5, -2.0, 0.25]) for sample in samples]
    first = int(np.argmin(values))  # below zero: the toolkit widens this range to hold zero
    cfg = tmp_path / "part.quantization.cfg"
    cfg.write_text(ENTRY.format(low=f"{values[first] * (1 + 1e-7):.16f}"))
    assert write_ranges(cfg, model, samples[first], samples, {"first": "first-rs"}) == 1
    lines = cfg.read_text().split()
    low, high = (float(lines[lines.index(end) + 2]) for end in ("min:", "max:"))
    assert (low, high) == (np.float32(min(values)), np.float32(max(values)))
