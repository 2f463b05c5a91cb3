"""The site of the history, as its reader meets it: the pages, their links, and a phone that shows them."""

import json
import re
import shutil
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pandas as pd
import pytest

from nightjar.cli import main as cli
from nightjar.nightly.history import History, Night
from nightjar.report.site.build import write_site
from nightjar.store.artifact import Store
from tests.browser import CHROMIUM, Browser, Page
from tests.conftest import need
from tests.history import a_week, clips, night_name, scored, verdict_of

MEGABYTE = 1_000_000


class Read(HTMLParser):
    """What a page is made of: its elements, links, handlers and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a week whose last night failed."""
    folder = tmp_path_factory.mktemp("week")
    history, store = History(folder / "history"), Store(folder / "store")
    a_week(history, store)
    write_site(history, store, folder / "site")
    return folder / "site"


def read(path: Path) -> Read:
    return Read(path.read_text(encoding="utf-8"))


def check_links(site: Path) -> int:
    """Hold every link of every page: it stays inside, and something lies there."""
    pages = sorted(site.rglob("*.html"))
    for page in pages:
        assert page.stat().st_size < MEGABYTE, page
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"url\(|@import|https?://", text.replace("http-equiv", "")), page
        for link in read(page).links:
            if link == "data:,":
                continue
            place = (page.parent / urllib.parse.unquote(link)).resolve()
            assert place.is_relative_to(site.resolve()), (page, link)
            assert place.is_file(), (page, link)
    return len(pages)


def test_the_first_page_says_what_failed_why_and_how_every_cell_stands(week: Path) -> None:
    first = read(week / "index.html")
    assert "FAIL" in first.text
    assert "Of 2 cells, 1 passed and 1 failed; 1 stand-in not counted." in first.text
    assert "WER is worse than in the previous run (6 Oct): 0.33 → 7.33 %." in first.text
    assert "Likely cause: toolchain rknn-toolkit2 2.4.0 → 2.5.0" in first.text
    assert first.text.index("What changed last night") < first.text.index("Scoreboard") < first.text.index("Nights")
    page = (week / "index.html").read_text(encoding="utf-8")
    tiles = re.findall(r'<a class="tile (\w+)"(.*?)</a>', page, re.DOTALL)
    assert {look for look, _ in tiles} == {"PASS", "FAIL", "standin"}
    for look, tile in tiles:
        said = Read(tile).text
        assert {"PASS": "host", "FAIL": "vendor-simulator", "standin": "stand-in"}[look] in said
        assert "rknn-toolkit2 2." in said, "a score without versions"
    assert "not on the NPU; not counted" in next(tile for look, tile in tiles if look == "standin")


def test_what_differs_between_two_nights_is_shown_word_by_word(week: Path) -> None:
    first = read(week / "index.html")
    pair = next(link for link in first.links if link.startswith("differences/"))
    page = (week / pair).read_text(encoding="utf-8")
    said = Read(page).text
    assert "rknn-toolkit2 2.4.0 → 2.5.0" in said
    assert "on the 30 clips of both nights: worse" in said
    assert "Clips that were transcribed differently (21 of 30)" in said
    assert '<mark title="reference: bird">zulu</mark>' in page
    cell = read(week / "cells" / "tiny~rknn~int8.html")
    assert "board rk did not answer" in cell.text
    assert [link for link in cell.links if link.startswith("../reports/")], "no full report"
    fourth = read(next((week / "nights").glob("2026-10-04*.html")))
    assert "tiny/rknn/int8 fails: board rk did not answer" in fourth.text


def test_four_hundred_nights_fit_and_every_link_leads_somewhere(week: Path, tmp_path: Path) -> None:
    assert check_links(week) >= 15
    history = History(tmp_path / "history")
    a_week(history, Store(tmp_path / "store"))
    for name in ("nights", "cells", "findings"):  # the same week again and again
        table = pd.read_csv(history.folder / f"{name}.csv", dtype=str, keep_default_na=False)
        nights = sorted(pd.read_csv(history.folder / "nights.csv")["night"])
        copies = []
        for week_number in range(58):
            moved = {old: night_name(7 * week_number + number) for number, old in enumerate(nights[:7])}
            one = table[table["night"].isin(moved)].copy()
            one["night"] = one["night"].map(moved)
            if "other" in one:
                one["other"] = one["other"].map(moved)
            copies.append(one)
        together = pd.concat(copies)
        if name != "nights":
            together.to_csv(history.folder / f"{name}.csv", index=False)
        else:
            every = together
    every.to_csv(history.folder / "nights.csv", index=False)
    written = write_site(history, Store(tmp_path / "gone"), tmp_path / "site")
    assert written.nights == 406
    assert check_links(tmp_path / "site") == written.pages
    assert "286 earlier nights left out of this page" in read(tmp_path / "site" / "cells" / "tiny~rknn~int8.html").text
    again = write_site(history, Store(tmp_path / "gone"), tmp_path / "site")
    assert again.made < 10 < written.made


def test_pages_stay_when_the_store_has_lost_what_they_show(tmp_path: Path) -> None:
    history, store, site = History(tmp_path / "history"), Store(tmp_path / "store"), tmp_path / "site"
    a_week(history, store)
    before = write_site(history, store, site)
    pair = next(link for link in read(site / "index.html").links if link.startswith("differences/"))
    shutil.rmtree(store.root)
    after = write_site(history, store, site)
    assert (after.pages, after.made < before.made) == (before.pages, True)
    assert "transcribed differently (21 of 30)" in read(site / pair).text
    check_links(site)
    anew = write_site(history, store, tmp_path / "anew")
    assert "The store no longer has the verdict of" in read(tmp_path / "anew" / pair).text
    assert "No longer in the store" in read(tmp_path / "anew" / "cells" / "tiny~rknn~int8.html").text
    assert check_links(tmp_path / "anew") == anew.pages


def test_names_and_texts_cannot_break_out_of_a_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"
    history, store = History(tmp_path / "history"), Store(tmp_path / "store")
    heard = clips(prefix=evil, text="<b onload=alert(1)> one two three four")
    for number, wrong in enumerate((0, 9)):
        night = night_name(number)
        verdict = verdict_of(heard, wrong, "host", instead="<svg/onload=alert(1)>")
        cell = scored(store, night, f"../../{evil}/x/int8", verdict, versions=evil, error=evil, command=evil)
        row = Night(night=night, started=evil, finished=evil, outcome="PASS", cells=1, failed=evil, flow_run=evil)
        history.append(row, [cell.model_copy(update={"board": evil, "judge": cell.judge})], [])
    write_site(history, store, tmp_path / "site")
    assert check_links(tmp_path / "site") >= 6
    assert {path.name for path in tmp_path.iterdir()} == {"history", "store", "site"}
    for page in (tmp_path / "site").rglob("*.html"):
        made_of = read(page)
        assert not made_of.tags & {"script", "img", "b onload", "iframe"}, page
        assert not {name for name in made_of.attributes if name.startswith("on")}, page
        assert "49" not in re.findall(r"\b49\b(?=\s*$)", made_of.text)
    assert "<script>alert(1)</script>" in read(tmp_path / "site" / "index.html").text


def test_an_empty_history_and_a_folder_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_HISTORY", str(tmp_path / "history"))
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "store"))
    assert cli.main(["report", "--site", "--out", str(tmp_path / "site")]) == 0
    assert "no night yet" in capsys.readouterr().out
    assert "No night yet" in read(tmp_path / "site" / "index.html").text
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "index.html").write_text("my own page")
    (tmp_path / "file").write_text("")
    for out, said in (("home", "was not written by Nightjar"), ("file", "is a file")):
        assert cli.main(["report", "--site", "--out", str(tmp_path / out)]) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "home" / "index.html").read_text() == "my own page"
    assert cli.main(["report", "--out", "there"]) == 2
    a_week(History(tmp_path / "history"), Store(tmp_path / "store"))
    capsys.readouterr()
    assert cli.main(["report"]) == 0
    shown = capsys.readouterr().out
    assert "FAIL" in shown
    assert "rknn-toolkit2 2.4.0 → 2.5.0" in shown
    cells = tmp_path / "history" / "cells.csv"
    cells.write_text(cells.read_text().replace(",PASS,", ",PERHAPS,"))
    assert cli.main(["report"]) == 4
    assert "has an invalid row" in capsys.readouterr().err


class Watched(Page):
    """A tab that also hears what the browser complains of."""

    HEARD = Page.HEARD | {"Log.entryAdded"}


def test_a_phone_shows_every_page_without_scrolling_sideways(week: Path, tmp_path: Path) -> None:
    need("chromium", CHROMIUM is not None, "apt install chromium")
    browser = Browser(tmp_path)
    try:
        made = httpx.put(f"http://127.0.0.1:{browser._port}/json/new?about:blank", timeout=60).json()
        tab = Watched(made["webSocketDebuggerUrl"], tmp_path)
        tab.send("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
        grounds = set()
        for scheme in ("light", "dark"):
            tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            for page in sorted(week.rglob("*.html")):
                tab.goto(page.as_uri())
                tab.wait(
                    f"location.href === {json.dumps(page.as_uri())} && document.readyState === 'complete'", page.name
                )
                wide = tab.js("[document.documentElement.scrollWidth, innerWidth]")
                assert wide == [390, 390], (page, wide)
                grounds.add((scheme, tab.js("getComputedStyle(document.body).backgroundColor")))
        assert len(grounds) == 2, "light and dark look the same"
        assert not tab.complaints
        tab.close()
    finally:
        browser.close()
