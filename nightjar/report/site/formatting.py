"""How the site writes nights, figures and outcomes."""

import re
from collections.abc import Sequence

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def day(night: str) -> str:
    """Write 2026-11-20T02:00:00Z as 20 Nov."""
    found = re.match(r"\d{4}-(0[1-9]|1[0-2])-(\d\d)T", night)
    return f"{int(found[2])} {MONTHS[int(found[1]) - 1]}" if found else night[:24]


def date_time(night: str) -> str:
    """Write 2026-11-20T02:00:00Z as 20 Nov 2026, 02:00 UTC."""
    found = re.match(r"(\d{4})-\d\d-\d\dT(\d\d:\d\d)", night)
    return f"{day(night)} {found[1]}, {found[2]} UTC" if found else night[:60]


def short(text: str, most: int) -> str:
    """Cut a text to `most` characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def megabytes(size_bytes: int | None) -> str:
    """Write a size."""
    return "–" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"


def count(number: int, one: str, many: str = "") -> str:
    """Write a number with its noun."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def join_words(names: Sequence[str]) -> str:
    """Write a list: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def split_failures(text: str, cells: Sequence[str]) -> list[str]:
    """Split the failures of a night: a new one begins where '; ' is followed by a cell's name."""
    names = "|".join(re.escape(cell) for cell in sorted(cells, key=len, reverse=True) if cell)
    parts = re.split(rf"; (?=(?:{names})\b)", text) if names else [text]
    return [part for part in parts if part]


def main_versions(versions: dict[str, str], target: str, most: int = 4) -> str:
    """Write the most important versions: the target's own tools, then what runs graphs, then the others."""
    ranks = {"onnxruntime": 1, "torch": 2, "whisper": 3, "openai-whisper": 3, "onnx": 4, "numpy": 5}
    named = sorted(versions, key=lambda name: (0 if target in name else ranks.get(name, 9), name))
    more = f" and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(f"{name} {versions[name]}".strip() for name in named[:most]) + more


def short_dates(text: str) -> str:
    """Write the names of nights in a sentence as days."""
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", lambda found: day(found[0]), text)
