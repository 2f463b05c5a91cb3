"""Normalisation of text for scoring, and the unit of an error: words or characters, by language."""

import warnings
from functools import cache
from typing import Any, Literal

from nightjar.request import language_code

Unit = Literal["word", "character", "word or character"]  # the last where clips are of several languages
RATES: dict[str, str] = {"word": "WER", "character": "CER", "word or character": "WER or CER"}  # by unit
# Languages without spaces between words. The Whisper paper (Radford et al. 2022, appendix C) scores the first five in
# characters; Cantonese came with large-v3.
CHARACTER_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
CHINESE = frozenset({"zh", "yue"})  # written in traditional or simplified characters, and Whisper writes both


def normalise(text: str, language: str = "en", simplified: bool = True) -> str:
    """Normalise text as OpenAI does to score Whisper: with its English normaliser, or its basic one.

    Where `error_unit(language)` is "character", characters are separated by spaces, so that `.split()` gives the units
    to score in every language. Chinese is compared in simplified characters, unless `simplified` is False.
    """
    code = language_code(language)
    if simplified and code in CHINESE:
        text = _to_simplified().convert(text)
    return str(_normaliser(code)(text)).strip()


def error_unit(language: str) -> Unit:
    """Return the unit of an error: characters where a language has no spaces between words."""
    return "character" if language_code(language) in CHARACTER_LANGUAGES else "word"


@cache
def _to_simplified() -> Any:
    from opencc import OpenCC  # imported late: it reads its tables

    return OpenCC("t2s")


@cache
def _normaliser(code: str) -> Any:
    # imported late: openai-whisper imports torch, and most callers need neither
    from whisper import normalizers

    make: Any = normalizers.EnglishTextNormalizer
    if code != "en":
        return normalizers.BasicTextNormalizer(split_letters=code in CHARACTER_LANGUAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # whisper leaves english.json open
        return make()
