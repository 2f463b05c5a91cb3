"""Attribution of a loss to encoder or decoder, from the scores of every encoder with every decoder."""

from collections.abc import Mapping

from pydantic import BaseModel


class PartPair(BaseModel, frozen=True):
    """Scores of one encoder with one decoder, compared with both in float."""

    wer: float  # percent
    interval: tuple[float, float]
    snr_db: float  # of the most likely tokens' logits, teacher-forced on the text of the float graphs
    kl: float  # nats per step, likewise
    bad: int  # hypotheses empty, looping or capped
    clips: int


PartPairs = Mapping[tuple[str, str], PartPair]  # by the encoder's precision and the decoder's


def attribute_loss(precision: str, pairs: PartPairs, budget: float) -> str:
    """Name in a sentence the parts that lose more than `budget` points of WER in this precision.

    Each part is first measured alone, with the other in float; a loss that neither has alone belongs to the pair.
    """
    float_wer = pairs["float", "float"].wer
    together = pairs[precision, precision].wer - float_wer
    alone = {
        "encoder": pairs[precision, "float"].wer - float_wer,
        "decoder": pairs["float", precision].wer - float_wer,
    }
    over = [part for part, loss in alone.items() if loss > budget]
    owner = " and ".join(over) or "encoder and decoder only together"
    if together <= budget:
        owner = "neither part"
    losses = ", ".join(f"{part} alone {loss:+.2f}" for part, loss in alone.items())
    return f"{owner}: {together:+.2f} points together, {losses}; budget {budget:g}"
