"""What a board's own program printed for a clip, as a target's printed.py reads it."""

from pydantic import BaseModel


class ProgramOutput(BaseModel, frozen=True):
    """One clip's text, and how long the program worked on how much audio, where it says so."""

    text: str
    seconds: float | None = None
    audio_s: float | None = None
