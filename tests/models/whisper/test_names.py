"""The copied list of downloadable names is the loader's own."""

import whisper

from models.whisper import NAMES


def test_names_are_those_openai_whisper_fetches() -> None:
    assert set(NAMES) == set(whisper.available_models())
