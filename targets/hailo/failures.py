"""Classify the DFC's errors by remedy, and read the optimisation level that it used from its log.

Sources: hailocs/hailo-whisper, hailo_model_zoo, community.hailo.ai; not verified against the DFC itself.
"""

import re
from typing import Literal, NamedTuple

Kind = Literal["graph", "precision", "calibration", "exponent", "fit", "dead layers", "memory", "unknown"]
# The pattern of the class and message of each kind (import paths change with the version), and the remedy.
KNOWN: dict[Kind, tuple[str, str]] = {
    "graph": (
        r"ParsingWithRecommendation|MisspellNode|Unsupported\w*(Layer|Operation|Model|Shuffle)\w*Error|InvalidHN",
        "`nightjar lint --target hailo` lists what it cannot parse and what the recipe does about it",
    ),
    "dead layers": (
        r"dead_layers_removal|DeadLayersRemoval",
        "the removal of unused layers is disabled already: report it with the log",
    ),
    "precision": (
        r"AccelerasUnsupported|precision_change|precision_mode|Unsupported layers for the (provided|target)",
        "put fewer layers in 16 bits: no attention (--target-options attention_16bit=no), fewer --float-nodes",
    ),
    "calibration": (
        r"BadInputsShape|BadInputs|doesn't match the (expected|model) input",
        "its input layout differs from targets/hailo/build.py: report it with the log",
    ),
    "exponent": (
        r"NegativeSlopeExponentNonFixable",
        "put that layer in 16 bits with --float-nodes, or fine-tune with --target-options finetune_epochs=4 and a GPU",
    ),
    "memory": (
        r"ResourceExhausted|OOM when allocating|CUDA_ERROR_OUT_OF_MEMORY|CUDNN_STATUS_ALLOC_FAILED",
        "give fewer samples at once, --target-options calibration_batch=2, and no noise_analysis",
    ),
    "fit": (
        r"BackendAllocator|[Nn]o valid partition|valid partition to contexts|Mapping Failed|[Aa]gent infeasible"
        r"|No successful assignment|Failed to produce compiled graph",
        "give a shorter --window",
    ),
    "unknown": ("", "read the log; then run the same command again, or report it"),
}


class Failure(NamedTuple):
    """One error of the DFC."""

    kind: Kind
    reason: str
    retryable: bool  # the same command may succeed at another time
    remedy: str


def classify(class_name: str, message: str) -> Failure:
    """Classify an exception by the name of its class and its message."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason = ": ".join(filter(None, (class_name, " ".join(lines[:3])[:300])))
    kind = next(kind for kind, (pattern, _) in KNOWN.items() if re.search(pattern, f"{class_name}: {message}"))
    return Failure(kind, reason, kind in ("memory", "unknown"), KNOWN[kind][1])


def level_used(log: str, requested: int) -> tuple[int, str]:
    """Read the level that `optimize` used from its log, and the reason for a lower one: no GPU, or few samples."""
    level, why = requested, ""
    for line in log.splitlines():
        if found := re.search(r"Using default optimization level of (\d)", line):
            level = int(found[1])
        elif found := re.search(r"Reducing optimization level to (\d)\s*(?:\([^)]*\))?\s*(?:because\s*)?(.*)", line):
            level, why = int(found[1]), found[2].strip().rstrip(".")
    return level, why
