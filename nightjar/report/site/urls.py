"""Paths of the site's pages: file names that need no quoting and are unique."""

import hashlib
import re

INDEX = "index.html"
NIGHTS = "nights.html"
TABLES = ("nights.csv", "cells.csv", "findings.csv")


def cell_url(cell: str) -> str:
    """Return the page of a cell."""
    return f"cells/{slug(cell)}.html"


def night_url(night: str) -> str:
    """Return the page of a night."""
    return f"nights/{slug(night)}.html"


def diff_url(cell: str, after: str, before: str) -> str:
    """Return the page of the difference between two nights of a cell."""
    return f"differences/{slug(cell)}/{slug(after)}--{slug(before)}.html"


def report_url(key: str) -> str:
    """Return the page of a report's copy."""
    return f"reports/{key}.html"


def slug(name: str) -> str:
    """Make a file name of a cell or a night; a name with other characters gets a digest, so that all stay unique."""
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", name):
        return name.replace(":", "")
    if re.fullmatch(r"[a-z0-9][a-z0-9./_-]{0,79}", name):
        return name.replace("/", "~")
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip(".-")[:60]
    return f"{plain}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"
