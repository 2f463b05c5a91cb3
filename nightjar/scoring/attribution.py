"""Name the part that a loss belongs to, from the table of every encoder with every decoder."""

from collections.abc import Mapping

from pydantic import BaseModel

PartPairs = Mapping[tuple[str, str], "PartPair"]  # (encoder's precision, decoder's) -> what was heard


class PartPair(BaseModel, frozen=True):
    """What one encoder with one decoder comes to; `float` with `float` is the measure."""

    wer: float  # percent
    interval: tuple[float, float]
    snr_db: float  # of the likeliest tokens' logits on the float text's prefix
    kl: float  # nats per step, likewise
    bad: int  # hypotheses empty, looping or capped
    clips: int


def attribute_loss(precision: str, cells: PartPairs, budget: float) -> str:
    """Say in a sentence which part loses more than `budget` points of WER in this precision.

    Each part is first tried alone with the other in float; a loss that neither has alone is the pair's.
    """
    measure = cells["float", "float"].wer
    together = cells[precision, precision].wer - measure
    alone = {
        "encoder": cells[precision, "float"].wer - measure,
        "decoder": cells["float", precision].wer - measure,
    }
    said = ", ".join(f"{part} alone {loss:+.2f}" for part, loss in alone.items())
    figures = f"{together:+.2f} points together, {said}; budget {budget:g}"
    guilty = [part for part, loss in alone.items() if loss > budget]
    if together <= budget:
        return f"nobody: {figures}"
    if guilty:
        return f"{' and '.join(guilty)}: {figures}"
    return f"encoder and decoder only together: {figures}"
