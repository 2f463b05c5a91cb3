"""What the DFC says when it refuses or fails, sorted by what helps; and what its log says it really did.

It raises classes of its own whose import paths change from version to version, so that they are known here by name
and words (hailocs/hailo-whisper, hailo_model_zoo, community.hailo.ai; the DFC itself was not at hand).
"""

import re
from typing import Literal, NamedTuple

Sort = Literal["graph", "precision", "calibration", "exponent", "fit", "dead layers", "memory", "unknown"]

KNOWN: tuple[tuple[Sort, str, bool, str], ...] = (
    # sort, what it says, whether the same command may do better another time, what to do
    (
        "graph",
        r"ParsingWithRecommendation|MisspellNode|Unsupported\w*(Layer|Operation|Model|Shuffle)\w*Error|InvalidHN",
        False,
        "`nightjar lint --target hailo` says what it cannot parse and what the recipe does about it",
    ),
    (
        "dead layers",
        r"dead_layers_removal|DeadLayersRemoval",
        False,
        "the removal of layers that nothing reads was left out already: report it with the log",
    ),
    (
        "precision",
        r"AccelerasUnsupported|precision_change|precision_mode|Unsupported layers for the (provided|target)",
        False,
        "put fewer layers in 16 bits: no attention (--target-options attention_16bit=no), fewer --float-nodes",
    ),
    (
        "calibration",
        r"BadInputsShape|BadInputs|doesn't match the (expected|model) input",
        False,
        "its layout of the inputs is another than in targets/hailo/build.py: report it with the log",
    ),
    (
        "exponent",
        r"NegativeSlopeExponentNonFixable",
        False,
        "put that layer in 16 bits with --float-nodes, or fine-tune with --target-options finetune_epochs=4 and a GPU",
    ),
    (
        "memory",
        r"ResourceExhausted|OOM when allocating|CUDA_ERROR_OUT_OF_MEMORY|CUDNN_STATUS_ALLOC_FAILED",
        True,
        "give fewer samples at once, --target-options calibration_batch=2, and no noise_analysis",
    ),
    (
        "fit",
        r"BackendAllocator|[Nn]o valid partition|valid partition to contexts|Mapping Failed|[Aa]gent infeasible"
        r"|No successful assignment|Failed to produce compiled graph",
        False,
        "give a shorter --window",
    ),
)


class Failure(NamedTuple):
    """One refusal: `again` where the same command may do better another time."""

    sort: Sort
    reason: str
    again: bool
    remedy: str


def classify(kind: str, message: str) -> Failure:
    """Sort what was raised by the name of its class and its words."""
    said = f"{kind}: {message}"
    for sort, words, again, remedy in KNOWN:
        if re.search(words, said):
            return Failure(sort, _line(kind, message), again, remedy)
    return Failure("unknown", _line(kind, message), True, "read the log; then run the same command again, or report it")


def _line(kind: str, message: str) -> str:
    """Cut a message of many lines to those that say something, in one."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    first = " ".join(lines[:3])[:300]
    return f"{kind}: {first}" if first else kind


class Level(NamedTuple):
    """The optimisation level that the DFC really used, and why it is another than asked."""

    used: int
    why: str


def level_used(log: str, asked: int) -> Level:
    """Read a log of `optimize`: without a GPU, or with few samples, it lowers the level and says so in one line."""
    level, why = asked, ""
    for line in log.splitlines():
        if found := re.search(r"Using default optimization level of (\d)", line):
            level = int(found[1])
        elif found := re.search(r"Reducing optimization level to (\d)\s*(?:\([^)]*\))?\s*(?:because\s*)?(.*)", line):
            level, why = int(found[1]), found[2].strip().rstrip(".")
    return Level(level, why)


def level_notes(level: Level, asked: int) -> list[str]:
    """Say in a sentence that the level used is another than asked; nothing where it is not."""
    why = level.why or "its log does not say why"
    return [] if level.used == asked else [f"the DFC optimized at level {level.used}, not {asked}: {why}"]
