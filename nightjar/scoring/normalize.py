"""Text as it is scored: normalised, and cut into words or characters by its language."""

import warnings
from functools import cache
from typing import Any, Literal

from nightjar.errors import BadOptions

# Written without spaces between words: the Whisper paper (Radford et al. 2022, appendix C) scores
# the first five in characters; Cantonese came with large-v3.
CHARACTER_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


def normalise(text: str, language: str = "en") -> str:
    """Write text the way OpenAI scores Whisper: its English normaliser, or its basic one.

    Characters are set apart by spaces where `unit(language)` is "character", so that `.split()`
    gives the units to score in every language.
    """
    return str(_normaliser(_code(language))(text)).strip()


def error_unit(language: str) -> Literal["word", "character"]:
    """Say what an error is counted in: characters where words are not spaced apart."""
    return "character" if _code(language) in CHARACTER_LANGUAGES else "word"


@cache
def _normaliser(code: str) -> Any:
    # lazily: openai-whisper brings torch with it, and most of this module needs neither
    from whisper import normalizers

    make: Any = normalizers.EnglishTextNormalizer
    if code != "en":
        return normalizers.BasicTextNormalizer(split_letters=code in CHARACTER_LANGUAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # whisper leaves english.json open
        return make()


@cache
def _code(language: str) -> str:
    """Reduce "zh-TW" or "Chinese" to "zh"; a mistyped code would change the normaliser silently."""
    code = language.strip().lower().replace("_", "-").split("-")[0]
    if code == "en" or code in CHARACTER_LANGUAGES:
        return code
    from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get(code, code)
    if code not in LANGUAGES:
        raise BadOptions(f"no language {language!r}; have {', '.join(sorted(LANGUAGES))}: pass one with --language")
    return str(code)
