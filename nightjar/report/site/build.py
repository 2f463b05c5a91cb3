"""Writing of the site: pages are made again only when their content changes, the main ones every night.

A page of a past night, or of two nights, ends with a stamp of what it was made of. A page that was made while the store
had its artifacts stays when gc has removed them.
"""

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from nightjar.errors import BadOptions
from nightjar.files import digest, storage_errors
from nightjar.nightly.evidence import artifact_file
from nightjar.nightly.history import Cell, History
from nightjar.report.site.cell_page import render_cell
from nightjar.report.site.charts import SHOWN
from nightjar.report.site.diff_page import has_differences, render_diff
from nightjar.report.site.history_view import NightHistory, SiteData, StoredResults, read_history
from nightjar.report.site.index_page import night_findings, render_index, render_nights
from nightjar.report.site.layout import GENERATOR, render
from nightjar.report.site.night_page import render_night
from nightjar.report.site.urls import INDEX, NIGHTS, TABLES, cell_url, diff_url, night_url, report_url
from nightjar.store.artifact import Store
from nightjar.store.fingerprint import closure

STAMP = re.compile(r"<!-- made of ([0-9a-f]{64}) by ([0-9a-f]{64}), (whole|in part) -->\s*\Z")
STAMP_BYTES = 200  # the stamp is within the last bytes of a page


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
    _require_own_folder(out)
    past = read_history(history)
    with storage_errors():
        pages = _Pages(out, store, digest(closure(("nightjar.report.site.build",)).files))
        if not past.nights:
            pages.write(INDEX, render("empty.html", root="", folder=str(history.folder)))
            return SiteSummary(out / INDEX, 0, pages.count, pages.made)
        linked = dict.fromkeys(row.report for rows in past.by_cell.values() for row in rows[-SHOWN:] if row.report)
        reports = frozenset(key for key in linked if pages.copy_report(key))
        site = SiteData(past, StoredResults(store), _diffs(past), reports)
        for (cell, of_night, other), page in site.diffs.items():
            rows = past.rows[cell, of_night], past.rows[cell, other]
            made_of = digest([row.model_dump() for row in rows])
            pages.write_lasting(page, made_of, rows, site.stored, partial(render_diff, site.stored, *rows))
        for number, night in enumerate(past.nights):
            page, made_of = night_url(night.night), _content_of_night(site, number)
            cells = past.by_night.get(night.night, ())
            pages.write_lasting(page, made_of, cells, site.stored, partial(render_night, site, number))
        for cell in past.by_cell:
            pages.write(cell_url(cell), render_cell(site, cell))
        for name in TABLES:
            _replace(out / name, (history.folder / name).read_bytes())
        pages.write(NIGHTS, render_nights(past))
        pages.write(INDEX, render_index(site))
    return SiteSummary(out / INDEX, len(past.nights), pages.count, pages.made)


def _diffs(past: NightHistory) -> dict[tuple[str, str, str], str]:
    """Choose the nights that have a page with another: the one before, the best for the last night, and findings'."""
    chosen: list[tuple[Cell, Cell | None]] = []
    for rows in past.by_cell.values():
        chosen += [(after, before) for before, after in pairwise(rows)]
        chosen.append((rows[-1], past.best(rows[-1])))
    for finding in (each for findings in past.findings.values() for each in findings):
        if (after := past.rows.get((finding.cell, finding.night))) is not None:
            chosen.append((after, past.rows.get((finding.cell, finding.other))))
    return {
        (after.cell, after.night, before.night): diff_url(after.cell, after.night, before.night)
        for after, before in chosen
        if before is not None and after is not before and has_differences(after, before)
    }


def _content_of_night(site: SiteData, number: int) -> str:
    """Digest everything that a night's page shows."""
    nights = site.history.nights
    night = nights[number]
    cells = site.history.by_night.get(night.night, ())
    befores = [site.history.before(cell) for cell in cells]
    neighbours = [nights[n].night for n in (number - 1, number + 1) if 0 <= n < len(nights)]
    shown: list[Any] = [row.model_dump() for row in (night, *cells, *filter(None, befores))]
    links = [(site.report(cell), site.diff(cell, before)) for cell, before in zip(cells, befores, strict=True)]
    return digest([shown, night_findings(site, night.night), neighbours, links])


class _Pages:
    """A folder of pages that are written whole or not at all; counts them."""

    def __init__(self, out: Path, store: Store, code: str) -> None:
        self.out, self.store, self.code = out, store, code
        self.count = self.made = 0

    def write(self, page: str, text: str) -> None:
        self.count += 1
        self.made += 1
        _replace(self.out / page, text.encode())

    def write_lasting(
        self,
        page: str,
        made_of: str,
        cells: Sequence[Cell],
        stored: StoredResults,
        make: Callable[[], tuple[str, bool]],
    ) -> None:
        """Write a page unless it is there as it would be made now, or was made when the store had more of `cells`."""
        old_made_of, old_code, extent = self._stamp(page)
        same = old_made_of == made_of
        store_may_have_more = extent == "in part" and any(map(stored.has_verdict, cells))
        if not same or old_code != self.code or store_may_have_more:
            text, whole = make()
            if whole or not same or extent == "in part":
                extent = "whole" if whole else "in part"
                self.write(page, f"{text}\n<!-- made of {made_of} by {self.code}, {extent} -->\n")
                return
        self.count += 1

    def copy_report(self, key: str) -> bool:
        """Copy a report into the site, with a link back; False where neither the site nor the store has it."""
        place = self.out / report_url(key)
        path = place if place.exists() else artifact_file(self.store, "report", key, "report.html")
        if path is None:
            return False
        self.count += 1
        if path != place:
            self.made += 1
            back = '<main>\n<p class="soft"><a href="../index.html" style="color:inherit">← all nights</a></p>'
            _replace(place, path.read_bytes().replace(b"<main>", back.encode(), 1))
        return True

    def _stamp(self, page: str) -> Sequence[str]:
        """Read from a page's end what it was made of, by which code, and whether the store had everything."""
        try:
            with (self.out / page).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - STAMP_BYTES))
                found = STAMP.search(file.read().decode(errors="replace"))
        except FileNotFoundError:
            return "", "", ""
        return found.groups() if found else ("", "", "")


def _require_own_folder(out: Path) -> None:
    """Raise BadOptions where writing would overwrite another program's page."""
    if out.exists() and not out.is_dir():
        raise BadOptions(f"--out {out} is a file: give a folder for the site")
    index = out / INDEX
    if index.exists() and GENERATOR not in index.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise BadOptions(f"{index} was not written by Nightjar: give another folder with --out, or move the file away")


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new one; without fsync, as a site can be made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:80]}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
