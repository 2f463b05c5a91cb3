"""What is known to have compiled for a Hailo-8L: the fallback where a window does not fit, and called so."""

from collections.abc import Mapping
from typing import Any, NamedTuple

SOURCE = "hailocs/hailo-whisper, docs/Conversion.md"


class Fit(NamedTuple):
    """A size of Whisper with the window of its encoder and the rows of its decoder that have been compiled."""

    size: str
    window_s: float
    rows: int


KNOWN = {384: Fit("tiny", 10.0, 32), 512: Fit("base", 5.0, 24)}  # by the width of the encoder


def known_fit(dims: Mapping[str, int]) -> Fit | None:
    """Return what has been compiled of a model of these dimensions, None where nobody has said."""
    return KNOWN.get(dims["n_audio_state"])


def window_label(model: Mapping[str, Any]) -> dict[str, Any]:
    """Say of a window whether it is known to fit, for binary.json."""
    fit, window_s = known_fit(model["dims"]), model["n_frames"] / 100
    known = fit is not None and window_s <= fit.window_s
    said = f"{fit.size}: up to {fit.window_s:g} s is known to fit ({SOURCE})" if fit else "nothing is known to fit"
    return {"seconds": window_s, "known_to_fit": known, "why": said}


def window_note(model: Mapping[str, Any]) -> str:
    """Say the same in a sentence, for people."""
    label = window_label(model)
    known = "known to fit on the chip" if label["known_to_fit"] else "not known to fit on the chip"
    return f"a window of {label['seconds']:g} s is {known}; {label['why']}"


def shorter_window(model: Mapping[str, Any]) -> str:
    """Say what to do about a part that found no place on the chip."""
    fit = known_fit(model["dims"])
    if fit is None:
        return "give a shorter --window: no size of this model is known to fit"
    if model["n_frames"] / 100 > fit.window_s:
        return f"give --window {fit.window_s:g}, the fallback that is known to fit for {fit.size} ({SOURCE})"
    return "this window is known to fit otherwise: put fewer layers in 16 bits, or fewer parts on the NPU"
