"""Measure the tables of docs/accuracy.md: OpenAI's tiny.en and base on every target, a row for each precision.

    .venv/bin/python benchmarks/accuracy.py [--models M…] [--targets T…] [--limit N] [--out DIR]

A row is one `nightjar port`. Its results are kept in DIR, so an interrupted run goes on with the next row. Rows of tier
host hear large-evaluation.jsonl, the others evaluation.jsonl; plain int8 on a simulator loops to the token limit and
takes hours, so LOOPING has its clips. Prints markdown. Weights come from NIGHTJAR_MODELS, else from where
../shared/models/fetch puts them; speech from NIGHTJAR_DATA, else from ../shared/data. Exits with 2 if they are absent.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODELS = Path(os.environ.get("NIGHTJAR_MODELS") or Path.home() / ".cache" / "nightjar-models")
SPEECH = Path(os.environ.get("NIGHTJAR_DATA") or ROOT.parent / "shared" / "data") / "librispeech"
ROWS = {
    "onnx": ("fp", "int8"),
    "rknn": ("fp", "int8", "auto"),
    "mtk": ("int8", "auto"),
    "hailo": ("int8", "auto"),
}
STAND_INS = ("mtk", "hailo")  # their SDKs are on no registry
LOOPING = {("rknn", "int8"): 24, ("mtk", "int8"): 24, ("hailo", "int8"): 72}


def measure(model: str, target: str, precision: str, limit: int | None, out: Path) -> dict[str, Any] | None:
    """Port one row unless its results are there; return them, or nothing where the port had no verdict."""
    file = out / f"{model}-{target}-{precision}.json"
    if not file.exists():
        large = "large-" if target == "onnx" else ""
        command = [
            *(sys.executable, "-m", "nightjar.cli.main", "port", "--model", model),
            *("--checkpoint", str(MODELS / f"{model}.pt"), "--target", target, "--precision", precision),
            *("--calibration-set", str(SPEECH / f"{large}calibration.jsonl")),
            *("--test-set", str(SPEECH / f"{large}evaluation.jsonl"), "--json", str(file)),
            *(("--board", "stand-in") if target in STAND_INS else ()),
        ]
        most = min(filter(None, (limit, LOOPING.get((target, precision)))), default=None)
        command += ["--limit", str(most)] if most else []
        print(f"{model}, {target}, {precision} …", file=sys.stderr, flush=True)
        subprocess.run(command, cwd=ROOT, check=False, stdout=sys.stderr)
    return json.loads(file.read_text()) if file.exists() else None


def row(target: str, precision: str, found: dict[str, Any] | None) -> str:
    """Write a row of the table."""
    if found is None:
        return f"| {target} {precision} | no verdict: the port failed, see above |" + " |" * 8
    gates = {gate["name"]: gate for gate in found["gates"]}
    low, high = found["interval"]
    shares = [f"{part} {share:.0%}" for part, share in found["int8_mac_share"].items() if share]
    new = ", ".join(f"{gates[f'new_{what}']['value']:.0f} {what}" for what in ("looping", "capped", "empty"))
    agreement = gates["agreement"]["value"]
    columns = (
        f"{target} {precision}",
        found["tier"],
        f"{found['clips']}",
        f"{found['wer_float']:.2f} → {found['wer']:.2f} %",
        f"{found['delta_wer']:+.2f} [{low:+.2f}, {high:+.2f}]",
        "" if agreement is None else f"{agreement:.1%}",
        new,
        f"{sum(found['size_bytes'].values()) / 1e6:.1f} MB",
        ", ".join(shares) or "none",
        found["verdict"],
    )
    return f"| {' | '.join(columns)} |"


def main() -> int:
    """Measure and print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny.en", "base"], metavar="M")
    parser.add_argument("--targets", nargs="+", default=list(ROWS), choices=ROWS, metavar="T")
    parser.add_argument("--limit", type=int, metavar="N", help="clips per row at most")
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "accuracy", metavar="DIR")
    asked = parser.parse_args()
    absent = [path for path in (SPEECH, *(MODELS / f"{model}.pt" for model in asked.models)) if not path.exists()]
    if absent:
        print(f"absent: {', '.join(map(str, absent))}: run ../shared/models/fetch", file=sys.stderr)
        return 2
    asked.out.mkdir(parents=True, exist_ok=True)
    for model in asked.models:
        rows = [
            row(target, precision, measure(model, target, precision, asked.limit, asked.out))
            for target in asked.targets
            for precision in ROWS[target]
        ]
        print(f"\n{model}\n\n| port | tier | clips | WER | Δ WER | tokens | new | size | int8 MACs | verdict |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        print("\n".join(rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
