"""Normalisation of text for scoring, and the unit of an error: words or characters, by language."""

import warnings
from functools import cache
from typing import Any, Literal

from nightjar.errors import BadOptions

# Languages without spaces between words. The Whisper paper (Radford et al. 2022, appendix C) scores the first five in
# characters; Cantonese came with large-v3.
CHARACTER_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


def normalise(text: str, language: str = "en") -> str:
    """Normalise text as OpenAI does to score Whisper: with its English normaliser, or its basic one.

    Where `error_unit(language)` is "character", characters are separated by spaces, so that `.split()` gives the units
    to score in every language.
    """
    return str(_normaliser(_code(language))(text)).strip()


def error_unit(language: str) -> Literal["word", "character"]:
    """Return the unit of an error: characters where a language has no spaces between words."""
    return "character" if _code(language) in CHARACTER_LANGUAGES else "word"


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


@cache
def _code(language: str) -> str:
    """Reduce "zh-TW" or "Chinese" to "zh"; raises BadOptions for a code that Whisper does not know."""
    code = language.strip().lower().replace("_", "-").split("-")[0]
    if code == "en" or code in CHARACTER_LANGUAGES:
        return code
    from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get(code, code)
    if code not in LANGUAGES:
        raise BadOptions(f"no language {language!r}; have {', '.join(sorted(LANGUAGES))}: pass one with --language")
    return str(code)
