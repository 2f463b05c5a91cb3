"""Console output: live stage lines, plans, verdicts, lists."""

import functools
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nightjar.progress import StageOutcome

LOGGERS = ("nightjar", "models", "targets", "tasks")
COLOURS = {"PASS": "green", "FAIL": "red", "UNDECIDED": "yellow"}


class Screen(logging.Handler):
    """Show stages as they run, and warnings between them: a live line in a terminal, plain lines in a log."""

    def __init__(self, stderr: bool = False) -> None:
        """stderr: keep stdout for the results alone."""
        super().__init__(logging.WARNING)
        self.console = Console(highlight=False, soft_wrap=True, stderr=stderr)
        if not self.console.is_terminal:
            self.console.width = 160  # a log has no width of its own
        self._live = Live(console=self.console, transient=True, auto_refresh=False)
        self._stage, self._start, self._printed_at = "", 0.0, 0.0

    def __enter__(self) -> "Screen":
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self)
            logging.getLogger(name).propagate = False  # Prefect's console would print it again
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)
            logging.getLogger(name).propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning."""
        self.say(f"  [yellow]warning[/yellow] {escape(record.getMessage())}")

    def say(self, text: str) -> None:
        """Print rich markup."""
        self.console.print(text)

    def print(self, text: str) -> None:
        """Print one line as it is, without markup."""
        self.console.print(text, markup=False, highlight=False)

    def render(self, template: str, /, **values: Any) -> None:
        """Print a template of templates/; values that are not markup go through its filter `e`."""
        self.say(_templates().get_template(template).render(**values).rstrip("\n"))

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = (), wrap: Sequence[str] = ()
    ) -> None:
        """Print rows of markup; columns are right-aligned except those in `left`, and wrap if they are in `wrap`."""
        table = Table(box=None, padding=(0, 2), show_header=any(columns))
        for column in columns:
            justify: Literal["left", "right"] = "left" if column in left else "right"
            table.add_column(column, justify=justify, no_wrap=column not in wrap, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show that a stage is at `done` of `total`; a `total` of 0 marks its start."""
        now = time.monotonic()
        if stage != self._stage or not total:
            self._stage, self._start, self._printed_at = stage, now, now
        count = f" {done}/{total}" if total else ""
        left = f", {(now - self._start) * (total - done) / done:.0f} s left" if done and done < total else ""
        if self.console.is_terminal:
            self._live.update(Text(f"  {stage:<26} …{count}{left}", style="cyan"), refresh=True)
        elif now - self._printed_at > 10:
            self._printed_at = now
            self.say(f"  {stage:<26} …{count}{left}")

    def outcome(self, outcome: StageOutcome) -> None:
        """Print the outcome of a stage."""
        if outcome.cached:
            line = f"  {outcome.name:<26} [green]cached[/green]"
        elif outcome.seconds:
            line = f"  {outcome.name:<26} {outcome.seconds:6.1f} s   [dim]{escape(outcome.why)}[/dim]"
        else:
            return
        self._live.update("", refresh=self.console.is_terminal)
        self.say(line)
        self._stage = ""


def show_transcripts(screen: Screen, results: dict[str, Any]) -> None:
    """Print each file's text, or with --format only what such a file holds, on stdout."""
    files, form = results["files"], results["format"]
    if form == "json":
        print(json.dumps(files, indent=1, ensure_ascii=False))
    else:
        print(_templates().get_template("transcripts.txt").render(files=files, form=form).rstrip("\n"))


def _clock(seconds: float) -> str:
    """Write seconds as hours, minutes, seconds and milliseconds."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds / 1000:06.3f}"


@functools.cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    )
    made.filters |= {"e": lambda text: escape(str(text)), "decimal": decimal, "clock": _clock}
    return made


def show_plan(screen: Screen, outcomes: Sequence[StageOutcome], sizes: Mapping[str, int]) -> None:
    """Print what would run and why, and the sizes of the parts' weights from their bytes in float32."""
    for outcome in outcomes:
        if not outcome.cached:
            screen.say(f"  {outcome.name:<26} [yellow]would run[/yellow]   [dim]{escape(outcome.why)}[/dim]")
    for part, size in sizes.items():
        each = (f"{size / 1e6 / less:,.1f} MB {dtype}" for dtype, less in (("float32", 1), ("float16", 2), ("int8", 4)))
        screen.say(f"  {f'weights of {part}':<26} {', '.join(each)}")
    todo = sum(not outcome.cached for outcome in outcomes)
    screen.say(f"{todo} of {len(outcomes)} stages would run; nothing was run")


def show_results(screen: Screen, results: dict[str, Any]) -> None:
    """Print the scores, the gates, the verdict and the report's path."""
    from nightjar.scoring.verdict import STAND_IN_NOTE, headline  # numpy, which the run has loaded

    stages = results["stages"]
    ran = sum(not stage["cached"] for stage in stages)
    screen.say(
        f"  {ran} of {len(stages)} stages ran" if ran else f"  all {len(stages)} stages cached, none was executed"
    )
    columns = ("", "WER %", "95 %", "S/D/I", "empty", "looping", "capped", "RTF p50")
    screen.table(columns, map(_score_row, results["scores"]), ("",))
    screen.render(
        "verdict.txt",
        **results,
        times=results.get("stream", {}).get("chunk_times", {}).get("binary"),
        headline=headline(results["tier"], results["verdict"]),
        stand_in_note=STAND_IN_NOTE,
        colours=COLOURS,
    )


def _score_row(score: dict[str, Any]) -> tuple[str, ...]:
    counts, (low, high) = score["counts"], score["interval"]
    return (
        f"{score['subject']} [dim]({score['tier']})[/dim]",
        f"{score['wer']:.2f}",
        f"{low:.2f}–{high:.2f}",
        f"{counts['substitutions']}/{counts['deletions']}/{counts['insertions']}",
        *(str(score[kind]) for kind in ("empty", "looping", "capped")),
        f"{score['rtf_p50']:.3f}" if score["rtf_p50"] is not None else "–",
    )


def show_comparison(screen: Screen, results: dict[str, Any]) -> None:
    """Print the texts of a comparison side by side."""
    columns = ("clip", "by", "seconds", "text")
    rows = [
        ("" if index else clip["id"], name, f"{line['seconds']:.2f}", escape(line["text"]) or "[dim](empty)[/dim]")
        for clip in results["results"]
        for index, (name, line) in enumerate(clip["by"].items())
    ]
    screen.table(columns, rows, ("clip", "by", "text"), columns)
    screen.say(f"{results['equal']} of {results['clips']} clips have the same token ids in all three")
    screen.say(f"JSONs: {results['out']}")


def show_attribution(screen: Screen, results: dict[str, Any]) -> None:
    """Print the table of encoders and decoders, and the part that each precision's loss comes from."""
    cells = {(cell["encoder"], cell["decoder"]): cell for cell in results["cells"]}
    precisions, first = results["precisions"], "encoder ↓  decoder →"
    rows = [(encoder, *(_pair(cells[encoder, decoder]) for decoder in precisions)) for encoder in precisions]
    screen.table((first, *precisions), rows, (first,), (first,))
    clips = results["cells"][0]["clips"]
    screen.say(f"WER and SNR of the logits on {clips} clips, tier {results['tier']}; !n: n empty, looping or capped")
    for precision, sentence in results["owners"].items():
        screen.print(f"{precision:<6} {sentence}")
    screen.say(f"JSON: {results['out']}")


def _pair(cell: dict[str, Any]) -> str:
    snr = "  exact " if cell["snr_db"] >= 200 else f"{cell['snr_db']:5.1f} dB"
    bad = f" !{cell['bad']}" if cell["bad"] else ""
    return f"{cell['wer']:.2f} %  {snr}{bad}"


def show_findings(findings: Sequence[Any]) -> int:
    """Print the findings of `doctor` or `board check`; return the exit code."""
    colours = {"ok": "green", "absent": "yellow", "missing": "red"}
    rows = [
        (f"[{colours[found.outcome]}]{found.outcome}[/]", escape(found.name), escape(found.detail))
        for found in findings
    ]
    Screen().table(("", "", ""), rows, ("",), ("",))
    return 3 if any(found.outcome == "missing" for found in findings) else 0
