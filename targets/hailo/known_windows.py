"""Windows that are known to compile for a Hailo-8L: the fallback where another window does not fit."""

from collections.abc import Mapping
from typing import Any

SOURCE = "hailocs/hailo-whisper, docs/Conversion.md"
# The width of an encoder -> the size of Whisper, and its longest window in seconds that has been compiled.
KNOWN = {384: ("tiny", 10.0), 512: ("base", 5.0)}


def window_label(model: Mapping[str, Any]) -> dict[str, Any]:
    """Describe for binary.json whether a window is known to fit."""
    size, longest_s = KNOWN.get(model["dims"]["n_audio_state"], ("", 0.0))
    window_s = model["n_frames"] / 100
    why = f"{size}: up to {longest_s:g} s is known to fit ({SOURCE})" if size else "no window is known to fit"
    return {"seconds": window_s, "known_to_fit": window_s <= longest_s, "why": why}


def window_note(model: Mapping[str, Any]) -> str:
    """Return the same as a sentence."""
    label = window_label(model)
    known = "known to fit" if label["known_to_fit"] else "not known to fit"
    return f"a window of {label['seconds']:g} s is {known} on the chip; {label['why']}"


def shorter_window(model: Mapping[str, Any]) -> str:
    """Return the remedy for a part that does not fit on the chip."""
    if window_label(model)["known_to_fit"]:
        return "this window is known to fit otherwise: put fewer layers in 16 bits, or fewer parts on the NPU"
    if known := KNOWN.get(model["dims"]["n_audio_state"]):
        return f"give --window {known[1]:g}, the fallback that is known to fit for {known[0]} ({SOURCE})"
    return "give a shorter --window: no size of this model is known to fit"
