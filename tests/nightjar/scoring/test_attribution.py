"""Whose a loss is."""

import pytest

from nightjar.scoring.attribution import PartPair, attribute_loss


def cells(encoder: float, decoder: float, both: float) -> dict[tuple[str, str], PartPair]:
    def cell(wer: float) -> PartPair:
        return PartPair(wer=wer, interval=(wer, wer), snr_db=20, kl=0, bad=0, clips=1)

    return {
        ("float", "float"): cell(10),
        ("int8", "float"): cell(10 + encoder),
        ("float", "int8"): cell(10 + decoder),
        ("int8", "int8"): cell(10 + both),
    }


@pytest.mark.parametrize(
    ("encoder", "decoder", "both", "named"),
    [
        (0.1, 0.2, 0.3, "neither part"),
        (60, 0.2, 61, "encoder"),
        (0.1, 220, 230, "decoder"),
        (60, 220, 240, "encoder and decoder"),
        (0.9, 0.8, 1.6, "encoder and decoder only together"),
    ],
)
def test_the_owner_is_who_loses_alone(encoder: float, decoder: float, both: float, named: str) -> None:
    sentence = attribute_loss("int8", cells(encoder, decoder, both), budget=1.0)
    assert sentence.partition(":")[0] == named
    assert f"encoder alone {encoder:+.2f}" in sentence
    assert f"{both:+.2f} points together" in sentence
