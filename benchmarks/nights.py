"""Run thirty nights without waiting; `make test` runs five. Needs root, to fill a disk.

    .venv/bin/python benchmarks/nights.py [NIGHTS] [SEED]

whisper-nano runs on this machine (float and int8), on a board behind ssh, and in Rockchip's simulator if its toolchain
is installed. Seeded changes: harmless checkpoints, another toolchain (the same packages with another version number: it
tests that only the version change is named), a dead board on night 7, a full disk on night 12, a bad checkpoint on
night 20. Each night must be one row and each cell one row of it. Every regression must be found on its night, and none
invented. The store must have the same size after any three quiet nights. Exits with 1 otherwise.
"""

import contextlib
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nightjar.errors import NightjarError
from nightjar.nightly.history import Cell, History, Night
from nightjar.nightly.retention import retention_entries
from nightjar.store.artifact import Store
from nightjar.store.gc import collect
from nightjar.toolchains.environment import Toolchain, override_toolchain, toolchain
from tests.loopback import Loopback
from tests.nights import Nights, altered, worse, write_config

DEAD_BOARD, FULL_DISK, BAD_CHECKPOINT, NEW_TOOLCHAIN = 7, 12, 20, 9
STORE_MIB = 1000
CELLS = """[[cells]]
models = ["nano"]
targets = ["onnx"]
precisions = ["fp", "int8"]
[[cells]]
models = ["nano"]
targets = ["onnx"]
precisions = ["fp"]
board = "loop"
"""
SIMULATED = """[[cells]]
models = ["nano"]
targets = ["rknn"]
precisions = ["fp"]
limit = 3
"""


def bumped(found: Toolchain, folder: Path, package: str, version: str) -> Path:
    """Make an environment of the same packages, one of them with another version number."""
    site = next(found.folder.glob("lib/python*/site-packages"))
    copy = folder / site.relative_to(found.folder)
    copy.mkdir(parents=True)
    for path in site.iterdir():
        is_it = path.name.startswith(f"{package}-") and path.name.endswith(".dist-info")
        (copy / (f"{package}-{version}.dist-info" if is_it else path.name)).symlink_to(path.resolve())
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(found.python.resolve())
    for name in ("pyvenv.cfg", "installed.json"):
        shutil.copyfile(found.folder / name, folder / name)
    return folder


def fill(folder: Path) -> Path:
    """Fill a disk to the last byte; return the file that does."""
    path = folder / "in the way"
    with contextlib.suppress(OSError), path.open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
            file.flush()
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path


def size(store: Path) -> int:
    """Return the bytes of a store."""
    return sum(path.lstat().st_size for path in store.rglob("*") if path.is_file())


def run(count: int, seed: int, folder: Path, store: Path, loop: Loopback, sdk: Toolchain | None) -> list[str]:
    """Run the nights; return the errors."""
    chance, wrong, sizes = random.Random(seed), [], []
    nights = Nights(folder, write_config(folder, CELLS + (SIMULATED if sdk else "")))
    quiet = [*range(3, 7), *range(14, 20), *range(23, count + 1)]
    bumps = {*chance.sample(quiet, min(4, len(quiet))), FULL_DISK, BAD_CHECKPOINT + 1}
    altered(nights.current, 0, seed)
    with contextlib.ExitStack() as environment:
        for number in range(1, count + 1):
            if number in bumps:
                altered(nights.current, 1e-4, seed + number)
            if number == BAD_CHECKPOINT:
                altered(nights.current, 0.35, seed)
            if number == NEW_TOOLCHAIN and sdk:
                copy = bumped(sdk, folder / "bumped", "rknn_toolkit2", "2.5.1")
                environment.enter_context(override_toolchain("rknn", copy))
            if number == DEAD_BOARD:
                loop.stop()
            filler = fill(store.parent) if number == FULL_DISK else None
            began = time.monotonic()
            with contextlib.redirect_stdout(io.StringIO()):
                code, said = nights.run(number)
            took = time.monotonic() - began
            if filler:
                filler.unlink()
            if number == DEAD_BOARD:
                loop.start()
            wrong += [f"night {number}: {what}" for what in check(number, code, said, bumps, sdk is not None)]
            there = Store(store)
            gone = collect(
                there, retention_entries(there, History(), keep_nights=3, older_than_s=0, reports=folder / "no reports")
            )
            sizes.append(size(store))
            found = [f"{each['kind']} {each['cell']}: {each['causes']}" for each in said["findings"]]
            print(
                f"night {number:2d}: {said['night']['outcome']} {took:5.1f} s, {sizes[-1] / 1e6:6.1f} MB after "
                f"{gone.freed_bytes / 1e6:.1f} MB were freed; {'; '.join(found) or 'no finding'}",
                flush=True,
            )
    return wrong + grown(sizes, bumps | {NEW_TOOLCHAIN, FULL_DISK + 1, BAD_CHECKPOINT}) + kept(count)


def check(number: int, code: int, said: dict[str, Any], bumps: set[int], simulated: bool) -> list[str]:
    """Compare the findings of a night with the changes made to it; return the errors."""
    cells = {cell["cell"] for cell in said["cells"]}
    expected: set[tuple[str, str, str]] = set()
    if number == DEAD_BOARD:
        expected = {("nano/onnx/fp/loop", "outcome", "board")}
    elif number == FULL_DISK:
        expected = {(cell, "outcome", "disk") for cell in cells}
    elif number == BAD_CHECKPOINT:
        expected = {(cell, "wer", "checkpoint") for cell in cells}
    found = set(worse(said))
    beside = {each for each in found - expected if number != BAD_CHECKPOINT or each[1:] != ("outcome", "checkpoint")}
    wrong = [f"not found: {each}" for each in expected - found] + [f"invented: {each}" for each in beside]
    changed = bumps | {DEAD_BOARD, DEAD_BOARD + 1, FULL_DISK, FULL_DISK + 1, BAD_CHECKPOINT, BAD_CHECKPOINT + 1}
    if number not in changed | ({NEW_TOOLCHAIN} if simulated else set()) and said["findings"]:
        wrong.append(f"finding without a change: {said['findings'][0]['sentence']}")
    if (
        number == NEW_TOOLCHAIN
        and simulated
        and not any("2.5.0 → 2.5.1" in each["causes"] for each in said["findings"])
    ):
        wrong.append("the toolchain change is not named")
    if (number in (DEAD_BOARD, FULL_DISK)) > (code == 1):
        wrong.append(f"exit code {code}")
    return wrong


def grown(sizes: Sequence[int], changed: set[int]) -> list[str]:
    """Compare store sizes after three nights without a change: only the best and the last artifacts remain then."""
    still = {number for number in range(4, len(sizes) + 1) if changed.isdisjoint(range(number - 2, number + 1))}
    flat = [sizes[number - 1] / 1e6 for number in sorted(still) if number > FULL_DISK + 1]
    print(f"the store after three quiet nights, MB: {', '.join(f'{each:.1f}' for each in flat)}")
    return [f"the store grew from {flat[0]:.1f} to {max(flat):.1f} MB"] if flat and max(flat) > 1.02 * flat[0] else []


def kept(count: int) -> list[str]:
    """Check that the history has every night and every cell."""
    history = History()
    nights, cells = history.rows(Night), history.table(Cell)
    per_night = cells.groupby("night")["cell"].nunique()
    wrong = [] if len(nights) == count == len(per_night) else [f"{len(nights)} nights of {count}"]
    return wrong + ([] if per_night.nunique() == 1 and len(cells) == per_night.sum() else ["a night lacks a cell"])


def main(count: int, seed: int) -> int:
    try:
        sdk: Toolchain | None = toolchain("rknn")
    except NightjarError as error:
        print(f"running without the simulator: {error}")
        sdk = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk = folder / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={STORE_MIB}m", "tmpfs", str(disk)]
        subprocess.run(mount, check=True)
        (folder / "sshd").mkdir()
        loop = Loopback(folder / "sshd")
        os.environ |= {
            "NIGHTJAR_STORE": str(disk / "artifacts"),
            "NIGHTJAR_HISTORY": str(folder / "history"),
            "NIGHTJAR_BOARDS": str(loop.boards(folder / "boards.toml")),
        }
        began = time.monotonic()
        try:
            wrong = run(count, seed, folder, disk / "artifacts", loop, sdk)
        finally:
            loop.stop()
            subprocess.run(["umount", str(disk)], check=True)
    for what in wrong:
        print(f"WRONG {what}")
    print(f"{count} nights, {len(wrong)} errors, {time.monotonic() - began:.0f} s, seed {seed}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, [*sys.argv[1:], *("30", "20261120")[len(sys.argv) - 1 :]][:2])))
