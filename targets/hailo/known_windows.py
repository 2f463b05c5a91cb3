"""Windows that are known to compile for a Hailo-8L: the fallback where another window does not fit."""

from collections.abc import Mapping
from typing import Any, NamedTuple

SOURCE = "hailocs/hailo-whisper, docs/Conversion.md"


class KnownWindow(NamedTuple):
    """The longest window of a Whisper size whose encoder has been compiled."""

    size: str
    window_s: float


KNOWN = {384: KnownWindow("tiny", 10.0), 512: KnownWindow("base", 5.0)}  # by the width of the encoder


def known_window(dims: Mapping[str, int]) -> KnownWindow | None:
    """Return the known window of a model of these dimensions, None where no conversion is known."""
    return KNOWN.get(dims["n_audio_state"])


def window_label(model: Mapping[str, Any]) -> dict[str, Any]:
    """Describe for binary.json whether a window is known to fit."""
    known, window_s = known_window(model["dims"]), model["n_frames"] / 100
    fits = known is not None and window_s <= known.window_s
    why = (
        f"{known.size}: up to {known.window_s:g} s is known to fit ({SOURCE})" if known else "no window is known to fit"
    )
    return {"seconds": window_s, "known_to_fit": fits, "why": why}


def window_note(model: Mapping[str, Any]) -> str:
    """Return the same as a sentence."""
    label = window_label(model)
    known = "known to fit" if label["known_to_fit"] else "not known to fit"
    return f"a window of {label['seconds']:g} s is {known} on the chip; {label['why']}"


def shorter_window(model: Mapping[str, Any]) -> str:
    """Return the remedy for a part that does not fit on the chip."""
    known = known_window(model["dims"])
    if known is None:
        return "give a shorter --window: no size of this model is known to fit"
    if model["n_frames"] / 100 > known.window_s:
        return f"give --window {known.window_s:g}, the fallback that is known to fit for {known.size} ({SOURCE})"
    return "this window is known to fit otherwise: put fewer layers in 16 bits, or fewer parts on the NPU"
