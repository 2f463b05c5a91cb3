"""Make the pictures of README.md: the graph of stages as an SVG, and a report as a PNG (by headless chromium).

python docs/pictures.py reports/whisper-nano-rknn-auto/report.html
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

PICTURES = Path(__file__).resolve().parent / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
REPORT_PX = (1100, 770)  # verdict, gates and scores
LARGEST_BYTES = 300_000

# -- the graph: boxes are artifacts, arrows are stages -----------------------------------------

BOX_W, BOX_H = 132, 46
COLUMNS = (10, 222, 434, 646, 858)
ROWS = (16, 116, 226)
WIDTH, HEIGHT = 1000, 312
# Dark text on light boxes, and lines of a middle grey: readable on a white page and on a dark one.
LINE, BOX, EDGE, INK = "#7d8590", "#eef2fb", "#8fa3cf", "#1d2126"
ON_BOARD, ON_BOARD_EDGE = "#fdf0d5", "#d9a441"
VERDICT, VERDICT_EDGE = "#dff3e6", "#5fae80"

Box = tuple[int, int, str, str, str]  # column, row, text, fill, edge
BOXES: tuple[Box, ...] = (
    (0, 0, "checkpoint", BOX, EDGE),
    (1, 0, "float graphs", BOX, EDGE),
    (2, 0, "float binary", ON_BOARD, ON_BOARD_EDGE),
    (3, 0, "hidden states", BOX, EDGE),
    (4, 0, "calibration set", BOX, EDGE),
    (2, 1, "int8 binary", ON_BOARD, ON_BOARD_EDGE),
    (3, 1, "precision plan", BOX, EDGE),
    (0, 2, "stock", BOX, EDGE),
    (1, 2, "float", BOX, EDGE),
    (2, 2, "binary", BOX, EDGE),
    (3, 2, "verdict", VERDICT, VERDICT_EDGE),
    (4, 2, "report", BOX, EDGE),
)
FIRST_ROW = (("export", ""), ("build", "float"), ("harvest", "on board"), ("calibrate", ""))


def draw_stages() -> str:
    """Draw the stages of a port."""
    left = list(COLUMNS)
    right = [x + BOX_W for x in COLUMNS]
    middle = [x + BOX_W // 2 for x in COLUMNS]
    top = list(ROWS)
    bottom = [y + BOX_H for y in ROWS]
    centre = [y + BOX_H // 2 for y in ROWS]
    shapes = [_line((right[i], centre[0]), (left[i + 1], centre[0])) for i in range(4)]
    for i, (above, below) in enumerate(FIRST_ROW):
        shapes += _label((right[i] + left[i + 1]) // 2, centre[0], above, below)
    shapes += [
        _line((middle[4], bottom[0]), (middle[4], centre[1]), (right[3], centre[1])),
        *_label((right[3] + middle[4]) // 2, centre[1], "rank and search", "layers for float16"),
        _line((left[3], centre[1]), (right[2], centre[1])),
        *_label((right[2] + left[3]) // 2, centre[1], "build", "int8"),
        _line((middle[1], centre[1]), (left[2], centre[1])),
        _line((middle[0], bottom[0]), (middle[0], top[2])),
        _line((middle[1], bottom[0]), (middle[1], top[2])),
        _line((middle[2], bottom[1]), (middle[2], top[2])),
    ]
    between = (bottom[1] + top[2]) // 2
    for column, text in enumerate(("stock", "evaluate", "evaluate on board")):
        shapes.append(_text(middle[column] + 8, between, text, anchor="start", colour=LINE))
    frame = 8
    shapes += [
        f'<rect x="{left[0] - frame}" y="{top[2] - frame}" width="{right[2] - left[0] + 2 * frame}" '
        f'height="{BOX_H + 2 * frame}" rx="12" fill="none" stroke="{LINE}" stroke-dasharray="4 4"/>',
        _text((left[0] + right[2]) // 2, bottom[2] + 26, "hypotheses of the same clips", colour=LINE),
        _line((right[2] + frame, centre[2]), (left[3], centre[2])),
        *_label((right[2] + frame + left[3]) // 2, centre[2], "judge", ""),
        _line((right[3], centre[2]), (left[4], centre[2])),
        *_label((right[3] + left[4]) // 2, centre[2], "report", ""),
        _rectangle(left[3], bottom[2] + 19, 22, 14, ON_BOARD, ON_BOARD_EDGE, radius=4),
        _text(left[3] + 30, bottom[2] + 26, "runs on a board or in a simulator", anchor="start", colour=LINE),
    ]
    for column, row, text, fill, edge in BOXES:
        shapes.append(_rectangle(left[column], top[row], BOX_W, BOX_H, fill, edge, radius=9))
        shapes.append(_text(middle[column], centre[row], text, colour=INK, size=15))
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{LINE}"/></marker>'
    )
    title = "The stages of a port, from the checkpoint to the report"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="system-ui, -apple-system, \'Segoe UI\', sans-serif">\n<title>{title}</title>\n'
        f"<defs>{head}</defs>\n" + "\n".join(shapes) + "\n</svg>\n"
    )


def _line(*points: tuple[int, int]) -> str:
    path = " ".join(f"{x} {y}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="{LINE}" stroke-width="1.8" marker-end="url(#head)"/>'


def _label(x: int, y: int, above: str, below: str) -> list[str]:
    return [_text(x, y + dy, text, colour=LINE) for text, dy in ((above, -11), (below, 15)) if text]


def _rectangle(x: int, y: int, width: int, height: int, fill: str, edge: str, *, radius: int) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" stroke="{edge}" '
        'stroke-width="1.5"/>'
    )


def _text(x: int, y: int, text: str, *, colour: str, anchor: str = "middle", size: int = 13) -> str:
    style = f'font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}" dy=".35em" {style}>{escape(text)}</text>'


# -- the report --------------------------------------------------------------------------------


def picture_of(report: Path, out: Path) -> None:
    """Write the first screen of a report as a PNG."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit("chromium is not installed: apt install chromium")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--hide-scrollbars", "--disable-background-networking", "--no-first-run", "--lang=en-GB"),
                *(f"--user-data-dir={profile}", f"--window-size={REPORT_PX[0]},{REPORT_PX[1]}"),
                *(f"--screenshot={out}", report.resolve().as_uri()),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
    if not 0 < out.stat().st_size <= LARGEST_BYTES:
        sys.exit(f"{out} has {out.stat().st_size} bytes; at most {LARGEST_BYTES} belong into the repository")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write docs/pictures/stages.svg, and docs/pictures/report.png where a report is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", nargs="?", type=Path, help="a report.html; without it only the graph is drawn")
    report: Path | None = parser.parse_args(arguments).report
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "stages.svg").write_text(draw_stages(), encoding="utf-8")
    if report is not None:
        if not report.is_file():
            sys.exit(f"{report} does not exist: run `make demo`, which writes it")
        picture_of(report, PICTURES / "report.png")


if __name__ == "__main__":
    main()
