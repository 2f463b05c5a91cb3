"""Where each page of the site lies: file names that need no quoting, and that no two names share."""

import hashlib
import re

INDEX = "index.html"
NIGHTS = "nights.html"
TABLES = ("nights.csv", "cells.csv", "findings.csv")


def cell_name(model: str, target: str, precision: str, board: str = "") -> str:
    """Name a cell as the history does."""
    return "/".join((model, target, precision, *([board] if board else [])))


def cell_url(cell: str) -> str:
    """Say where all nights of a cell are."""
    return f"cells/{slug(cell)}.html"


def night_url(night: str) -> str:
    """Say where one night is."""
    return f"nights/{slug(night)}.html"


def diff_url(cell: str, after: str, before: str) -> str:
    """Say where the difference of two nights of a cell is."""
    return f"differences/{slug(cell)}/{slug(after)}--{slug(before)}.html"


def report_url(key: str) -> str:
    """Say where the copy of a report is."""
    return f"reports/{key}.html"


def is_key(text: str) -> bool:
    """Tell whether this is a key of the store: a table that was edited could name any file."""
    return re.fullmatch(r"[0-9a-f]{8,64}", text) is not None


def slug(name: str) -> str:
    """Make a file name of a cell or a night; what is not plain gets a digest, so that no two come to the same."""
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", name):
        return name.replace(":", "")
    if re.fullmatch(r"[a-z0-9][a-z0-9./_-]{0,79}", name):
        return name.replace("/", "~")
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip(".-")[:60]
    return f"{plain}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"
