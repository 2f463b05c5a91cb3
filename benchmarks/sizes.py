"""Whisper's sizes: seconds (of the processor in brackets), peak memory and disk of export and float builds, as a table.

    .venv/bin/python benchmarks/sizes.py [tiny] [base] [small] [medium] [turbo] [large-v3] [--steps S…] [--minutes N]

The dimensions are OpenAI's, the weights noise, made on the spot and removed afterwards; neither changes what a step
costs. Each step is a process of its own, whose memory with that of its children is sampled from /proc; beyond 20 GiB or
the time limit it is killed, and the table says so. rknn needs `nightjar toolchain install rknn`.
"""

import argparse
import contextlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nightjar.plugins.registry import plugin  # noqa: E402

MEMORY_GIB = 20
SIZES = {  # n_mels, n_vocab, width, heads, encoder layers, decoder layers: OpenAI's
    "tiny": (80, 51865, 384, 6, 4, 4),
    "base": (80, 51865, 512, 8, 6, 6),
    "small": (80, 51865, 768, 12, 12, 12),
    "medium": (80, 51865, 1024, 16, 24, 24),
    "turbo": (128, 51866, 1280, 20, 32, 4),
    "large-v3": (128, 51866, 1280, 20, 32, 32),
}
STEPS = {  # the targets whose recipe the export follows, and what the table calls it
    "export": "export",
    "onnx": "build fp, onnx",
    "rknn-export": "export, rknn's recipe",
    "rknn": "build fp, rknn",
}


class Figures(NamedTuple):
    """What a step took; `why` says why it has no result."""

    seconds: float
    processor_s: float  # what counts on a machine with other work
    memory_gib: float
    disk_gib: float
    why: str = ""

    def cell(self) -> str:
        """Return what the table shows."""
        took = f"{self.seconds:,.0f} s ({self.processor_s:,.0f}), {self.memory_gib:.1f} GiB"
        return f"{self.why}: {took}" if self.why else f"{took}, {1024 * self.disk_gib:,.0f} MiB"


def step(name: str, folder: Path) -> None:
    """Do one step in this process."""
    from models.whisper.export import export

    target = plugin("targets", "rknn" if "rknn" in name else "onnx").load()
    graphs = folder / f"{target.NAME}-graphs"
    if name.endswith("export"):
        export(folder / "model.pt", target.recipe("whisper"), graphs, clamp=True)
    else:
        target.compile(graphs, None, target.Options(precision="fp"), folder / f"{target.NAME}-binary")


def make(size: str, file: Path) -> None:
    """Write a checkpoint of float16 noise with the dimensions of a size."""
    import torch

    from models.whisper.surgery import weight_shapes

    mels, vocabulary, width, heads, encoder, decoder = SIZES[size]
    audio = {"n_mels": mels, "n_audio_ctx": 1500, "n_audio_state": width, "n_audio_head": heads}
    text = {"n_vocab": vocabulary, "n_text_ctx": 448, "n_text_state": width, "n_text_head": heads}
    dims = audio | text | {"n_audio_layer": encoder, "n_text_layer": decoder}
    noise = torch.Generator().manual_seed(0)
    state = {name: (torch.randn(s, generator=noise) / 50).half() for name, s in weight_shapes(dims).items()}
    torch.save({"dims": dims, "model_state_dict": state}, file)


def measured(name: str, folder: Path, limit_s: float) -> Figures:
    """Run a step in a process of its own; sample the memory of the process and its children."""
    command = [sys.executable, "-W", "ignore", __file__, "--step", name, str(folder)]
    start, peak, why, before_s = time.perf_counter(), 0, "", processor_s()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            if peak > MEMORY_GIB * 2**30:
                why = f"more than {MEMORY_GIB} GiB"
            elif time.perf_counter() - start > limit_s:
                why = f"not finished within {limit_s / 60:g} minutes"
            if why:
                for each in family(process.pid):  # a toolchain's process has a group of its own
                    with contextlib.suppress(psutil.Error):
                        before_s -= sum(each.cpu_times()[:2])  # which no one waits for
                        each.kill()
                process.wait()
            time.sleep(0.1)
    seconds = time.perf_counter() - start
    if process.returncode and not why:
        why = (folder / "log.txt").read_text().strip().splitlines()[-1][-300:]
    written = folder / f"{'rknn' if 'rknn' in name else 'onnx'}-{'graphs' if name.endswith('export') else 'binary'}"
    disk = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    return Figures(seconds, processor_s() - before_s, peak / 2**30, disk / 2**30, why)


def processor_s() -> float:
    """Return the processor seconds of all children that have ended, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident(pid: int) -> int:
    """Return the memory of a process and its children that is their own: mapped files are left out."""
    total = 0
    for process in family(pid):
        with contextlib.suppress(psutil.Error):  # it has just ended
            info = process.memory_info()
            total += info.rss - info.shared
    return total


def family(pid: int) -> list[psutil.Process]:
    """List a process and its children."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=["tiny", "base", "small", "medium", "turbo"], metavar="SIZE")
    parser.add_argument("--minutes", type=float, default=10, help="time limit of a step (default: 10)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=[*STEPS], help="of each size (default: all)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step(arguments.step[0], Path(arguments.step[1]))
        return 0
    found: dict[str, dict[str, Any]] = {}
    titles = [title for name, title in STEPS.items() if name in arguments.steps]
    print(f"| size | {' | '.join(titles)} |\n|---|{'---|' * len(titles)}", flush=True)
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(prefix="nightjar-sizes-") as name:
            folder, row = Path(name), dict[str, Figures]()
            make(size, folder / "model.pt")
            for each in (name for name in STEPS if name in arguments.steps):
                needs = {"onnx": "export", "rknn": "rknn-export"}.get(each)
                if needs and (needs not in row or row[needs].why):
                    row[each] = Figures(0, 0, 0, 0, "no graphs")
                    continue
                row[each] = measured(each, folder, 60 * arguments.minutes)
                if each == "onnx":  # the disk holds one target's files at a time
                    for done in folder.glob("onnx-*"):
                        shutil.rmtree(done)
            print(f"| {size} | {' | '.join(figures.cell() for figures in row.values())} |", flush=True)
            found[size] = {each: figures._asdict() for each, figures in row.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
