"""Languages by code, name or alias, as Whisper abbreviates them."""

from functools import cache
from typing import Any

from nightjar.errors import BadOptions

AUTO = "auto"  # detected clip by clip
ALIASES = {"cmn": "zh", "fil": "tl", "iw": "he", "jv": "jw", "nb": "no"}  # codes of other standards


@cache
def language_code(language: str) -> str:
    """Return Whisper's code of a language: "zh" for zh-CN, Chinese, mandarin or cmn; "auto" stays.

    Raises BadOptions for a language that Whisper does not know.
    """
    name = language.strip().lower().replace("_", "-")
    if name in (AUTO, "en"):  # without openai-whisper, whose import takes seconds
        return name
    codes, names = _tables()
    for each in (name, name.split("-")[0]):
        code = ALIASES.get(each) or names.get(each) or each
        if code in codes:
            return str(code)
    raise BadOptions(
        f"no language {language!r}: pass --language auto, a code ({', '.join(sorted(codes))}) or an English name"
    )


def _tables() -> tuple[Any, Any]:
    from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    return LANGUAGES, TO_LANGUAGE_CODE
