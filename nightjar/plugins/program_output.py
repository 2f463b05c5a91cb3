"""Output of a board's own program for one clip, as a target's printed.py parses it."""

from pydantic import BaseModel


class ProgramOutput(BaseModel, frozen=True):
    """Text of one clip; seconds of computing and of audio, where the program prints them."""

    text: str
    seconds: float | None = None
    audio_s: float | None = None
