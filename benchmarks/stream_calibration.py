"""Compare ways to calibrate a stream: zipformer-nano in the simulator, every strategy on the same clips.

    .venv/bin/python benchmarks/stream_calibration.py [--precision int8] [--limit N] [--drift S] [--json F]

Each strategy is one port. A row has the calibration set's size and seconds, the encoder's SNR at both ends of one long
stream, and WER with its interval. Stages come from the artifact store, so an interrupted run continues.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EVERY = "samples=1000000"  # more than any set has: all steps of a full set are used
STRATEGIES: dict[str, list[str]] = {
    "sampled, kaldi": [],
    "full, kaldi": ["--calibration-states", "full", "--target-options", EVERY],
    "zero, kaldi": ["--calibration-states", "zero"],
    "sampled, librosa": ["--calibration-features", "librosa"],
    "sampled, waveform-dc": ["--calibration-features", "waveform-dc"],
}


def ported(asked: list[str], arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Port once; return the results that the command line writes."""
    out = scratch / "results.json"
    command = [sys.executable, "-m", "nightjar.cli.main", "port", "--model", "zipformer-nano", "--target", "rknn"]
    command += ["--board", "simulator", "--precision", arguments.precision, "--drift", str(arguments.drift)]
    command += ["--limit", str(arguments.limit)] * (arguments.limit is not None)
    ended = subprocess.run([*command, *asked, "--json", str(out)], cwd=ROOT, check=False)
    if ended.returncode not in (0, 1):
        raise SystemExit(f"port failed with exit code {ended.returncode}: {' '.join(asked)}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def described(results: dict[str, Any]) -> dict[str, Any]:
    """Pick the compared figures from the results."""
    made = results["made_from"]["calibration"]
    store = Path(os.environ.get("NIGHTJAR_STORE") or ROOT / "artifacts")
    folder = store / "calibrate" / made["key"]
    drift = results["stream"]["drift"]
    course = drift["courses"][drift["output"]]
    agree = [sum(each[i] for each in drift["agree"]) for i in (0, 1)]
    binary = next(score for score in results["scores"] if score["subject"] == "binary")
    return {
        "set_bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        "set_seconds": made["seconds"],
        "first_db": course["first_db"],
        "last_db": course["last_db"],
        "tokens_agree": agree,
        "wer": binary["wer"],
        "interval": binary["interval"],
        "delta_wer": results["delta_wer"],
        "delta_interval": results["interval"],
        "int8_mac_share": results["int8_mac_share"],
        "tier": results["tier"],
        "clips": results["clips"],
    }


def main() -> int:
    """Port with every strategy and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--precision", default="int8", choices=["int8", "auto"])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--drift", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, asked in STRATEGIES.items():
            print(f"== {name}", flush=True)
            rows[name] = described(ported(asked, arguments, Path(scratch)))
    print("| calibrated on | set | s | SNR, first to last quarter | tokens in float's row | WER | Δ WER |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        (low, high), (less, more) = row["interval"], row["delta_interval"]
        matching, of = row["tokens_agree"]
        print(
            f"| {name} | {row['set_bytes'] / 2**20:.1f} MiB | {row['set_seconds']:.0f} | "
            f"{row['first_db']:.1f} → {row['last_db']:.1f} dB | {matching} of {of} | "
            f"{row['wer']:.2f} % [{low:.2f}, {high:.2f}] | {row['delta_wer']:+.2f} [{less:+.2f}, {more:+.2f}] |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
