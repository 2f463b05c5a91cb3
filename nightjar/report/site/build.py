"""Write the site: what depends on tonight is made anew, what does not is left as it lies there.

A page of a past night, or of the difference of two, says at its end what it was made of, and is made again only where
that differs. One that was made while the store had its artifacts stays as it is when gc has taken them.
"""

import os
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from nightjar.errors import BadOptions
from nightjar.files import digest, storage_errors
from nightjar.nightly.history import Cell, History
from nightjar.report.site.cell_page import render_cell
from nightjar.report.site.charts import SHOWN
from nightjar.report.site.diff_page import has_differences, render_diff
from nightjar.report.site.history_view import NightHistory, StoredResults, read_history
from nightjar.report.site.index_page import night_findings, render_empty, render_index, render_nights
from nightjar.report.site.layout import GENERATOR
from nightjar.report.site.night_page import render_night
from nightjar.report.site.urls import INDEX, NIGHTS, TABLES, cell_url, diff_url, night_url, report_url
from nightjar.store.artifact import Store
from nightjar.store.fingerprint import closure

STAMP = re.compile(rb"<!-- made of ([0-9a-f]{64}) by ([0-9a-f]{64}), (whole|in part) -->\s*\Z")
STAMP_BYTES = 200  # it is the end of a page

Pairs = dict[tuple[str, str, str], str]  # cell, night, the other night: the page of their difference


class SiteSummary(NamedTuple):
    """What a site holds: `pages` in all, `made` of them by this run."""

    first: Path
    nights: int
    pages: int
    made: int


def write_site(history: History, store: Store, out: Path) -> SiteSummary:
    """Write all pages into `out`, the first page last, so that its links always lead somewhere.

    Raises BadOptions for a folder that holds something else, StoreBroken where the history cannot be read or the disk
    is full.
    """
    _require_ours(out)
    past = read_history(history)
    with storage_errors():
        site = _Site(out, digest(closure(("nightjar.report.site.build",)).files))
        if not past.nights:
            site.write(INDEX, render_empty(str(history.folder)))
            return SiteSummary(out / INDEX, 0, site.pages, site.made)
        _write(site, past, StoredResults(store))
        for name in TABLES:
            _replace(out / name, (history.folder / name).read_bytes())
        site.write(NIGHTS, render_nights(past))
        site.write(INDEX, render_index(past, _pairs(past)))
    return SiteSummary(out / INDEX, len(past.nights), site.pages, site.made)


def _write(site: "_Site", past: NightHistory, kept: StoredResults) -> None:
    copied = {
        key
        for rows in past.by_cell.values()
        for key in dict.fromkeys(row.report for row in rows[-SHOWN:] if row.report)
        if site.copy_report(kept, key)
    }
    pairs = _pairs(past)
    rows = {(row.cell, row.night): row for rows in past.by_cell.values() for row in rows}
    for (cell, after, before), page in pairs.items():
        a, b = rows[cell, after], rows[cell, before]
        made_of = digest([a.model_dump(), b.model_dump()])
        if not site.is_current(page, made_of, kept, [a, b]):
            site.write_stamped(page, made_of, *render_diff(kept, a, b))
    for number, night in enumerate(past.nights):
        page, made_of = night_url(night.night), _made_of_night(past, number, pairs, copied)
        if not site.is_current(page, made_of, kept, past.by_night.get(night.night, ())):
            site.write_stamped(page, made_of, *render_night(past, kept, number, pairs, copied))
    for cell in past.by_cell:
        site.write(cell_url(cell), render_cell(past, kept, cell, pairs, copied))


def _pairs(past: NightHistory) -> Pairs:
    """Choose the pairs of nights that have a page: each with the one before, tonight's with the best, and findings'."""
    chosen: list[tuple[Cell, Cell]] = []
    by_night = {(row.cell, row.night): row for rows in past.by_cell.values() for row in rows}
    for rows in past.by_cell.values():
        chosen += [(after, before) for before, after in pairwise(rows)]
        if (best := past.best(rows[-1])) is not None:
            chosen.append((rows[-1], best))
    for findings in past.findings.values():
        for finding in findings:
            after, before = (by_night.get((finding.cell, night)) for night in (finding.night, finding.other))
            if after is not None and before is not None and after is not before:
                chosen.append((after, before))
    return {
        (after.cell, after.night, before.night): diff_url(after.cell, after.night, before.night)
        for after, before in chosen
        if has_differences(after, before)
    }


def _made_of_night(past: NightHistory, number: int, pairs: Pairs, copied: set[str]) -> str:
    """Digest everything that a night's page shows."""
    night = past.nights[number]
    cells = past.by_night.get(night.night, ())
    befores = [past.before(cell) for cell in cells]
    neighbours = [past.nights[n].night for n in (number - 1, number + 1) if 0 <= n < len(past.nights)]
    shown: list[Any] = [row.model_dump() for row in (night, *cells, *filter(None, befores))]
    reports = sorted(copied & {cell.report for cell in cells})
    links = [
        pairs.get((cell.cell, cell.night, before.night), "") if before else ""
        for cell, before in zip(cells, befores, strict=True)
    ]
    return digest([shown, night_findings(past, night.night, pairs), neighbours, reports, links])


class _Site:
    """A folder of pages that are written whole or not at all; counts them."""

    def __init__(self, out: Path, code: str) -> None:
        self.out, self.code = out, code
        self.pages = self.made = 0

    def write(self, page: str, text: str) -> None:
        self.pages += 1
        self.made += 1
        _replace(self.out / page, text.encode())

    def is_current(self, page: str, made_of: str, kept: StoredResults, cells: Iterable[Cell]) -> bool:
        """Tell whether a page lies there as it would be made now, of the verdicts of `cells`."""
        stamp = self._stamp(page)
        current = stamp is not None and stamp[:2] == (made_of, self.code)
        if stamp is not None and stamp[2] != "whole":  # what the store lacked then may be there now
            current = current and not any(kept.file("judge", cell.judge, "verdict.json") for cell in cells)
        self.pages += current
        return current

    def write_stamped(self, page: str, made_of: str, text: str, whole: bool) -> None:
        """Write a page, unless the one there says more of the same: it was made when the store had all of it."""
        old = self._stamp(page)
        if not whole and old is not None and (old[0], old[2]) == (made_of, "whole"):
            self.pages += 1
            return
        stamp = f"<!-- made of {made_of} by {self.code}, {'whole' if whole else 'in part'} -->\n"
        self.write(page, f"{text}\n{stamp}")

    def copy_report(self, kept: StoredResults, key: str) -> bool:
        """Copy a report into the site with a way back; False where there is none, neither here nor in the store."""
        place = self.out / report_url(key)
        path = kept.file("report", key, "report.html") if not place.exists() else place
        if path is None:
            return False
        self.pages += 1
        if path != place:
            self.made += 1
            back = (
                b'<main>\n<p class="soft"><a href="../index.html" style="color:inherit">\xe2\x86\x90 all nights</a></p>'
            )
            _replace(place, path.read_bytes().replace(b"<main>", back, 1))
        return True

    def _stamp(self, page: str) -> tuple[str, str, str] | None:
        """Read what a page says at its end: what it was made of, by which code, and whether all was there."""
        try:
            with (self.out / page).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - STAMP_BYTES))
                found = STAMP.search(file.read())
        except FileNotFoundError:
            return None
        return (found[1].decode(), found[2].decode(), found[3].decode()) if found else None


def _require_ours(out: Path) -> None:
    """Raise BadOptions where writing would overwrite what is not ours."""
    if out.exists() and not out.is_dir():
        raise BadOptions(f"--out {out} is a file: name a folder for the site")
    index = out / INDEX
    if index.exists() and GENERATOR not in index.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise BadOptions(f"{index} is no page of this site: give another folder with --out, or move it away")


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new one; a site can be made again, so nothing waits for a disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:80]}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
