"""Speed of boards over loopback as ratios, each against a named alternative in the same run.

    .venv/bin/python benchmarks/boards.py [transfer] [again] [share] [--mb N] [--repeats N]

transfer: put and get of one file of noise, sha256 at both ends, against OpenSSH's `sftp` on the same bytes, with its
default cipher and with Nightjar's (aes128-gcm); both without the login. again: bytes that a second harvest of the same
clips moves, against the first. share: a harvest by two boards against one; the runner sleeps on each clip.
Run it on an idle machine. Exits with 1 if a ratio misses its bound.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from nightjar.boards.config import find_board
from nightjar.boards.ssh import SshBoard
from nightjar.sessions import run as job
from tests.faults import Bench
from tests.loopback import Loopback

SLEEP_S = 0.25  # time of a small encoder on an NPU
CIPHERS = {"its default cipher": (), "aes128-gcm": ("-o", "Ciphers=aes128-gcm@openssh.com")}


def transfer(folder: Path, loop: Loopback, size_mb: int, repeats: int) -> list[tuple[str, float, bool]]:
    """Move noise both ways; return ratios of speeds, SshBoard's to sftp's."""
    ratios: dict[str, list[float]] = {}
    big, there, back = folder / "big", folder / "there", folder / "back"

    def sftp(cipher: str, line: str) -> float:
        began = time.monotonic()
        command = ["sftp", "-q", "-b", "-", "-F", str(loop.folder / "ssh_config"), *CIPHERS[cipher], "loop"]
        subprocess.run(command, input=line.encode(), check=True, capture_output=True)
        return time.monotonic() - began

    for number in range(repeats):
        big.write_bytes(os.urandom(size_mb * 1_000_000))
        ours = {}
        with SshBoard(find_board("loop")) as board:
            board._scratch_folder()  # the login
            for what, move in (
                ("put", lambda: board.put_all([(big, Path(f"jobs/{number}"))])),  # noqa: B023
                ("get", lambda: board.get_all([(Path(f"jobs/{number}"), back)])),  # noqa: B023
            ):
                began = time.monotonic()
                move()
                ours[what] = time.monotonic() - began
        assert back.read_bytes() == big.read_bytes()
        shutil.rmtree(loop.scratch)
        for cipher in CIPHERS:
            login_s = sftp(cipher, "bye\n")
            for what, line in (("put", f"put {big} {there}\n"), ("get", f"get {there} {back}\n")):
                ratio = (sftp(cipher, line) - login_s) / ours[what]
                ratios.setdefault(f"{what} / sftp with {cipher}", []).append(ratio)
        speeds = ", ".join(f"{what} {size_mb / seconds:.0f} MB/s" for what, seconds in ours.items())
        print(f"  round {number + 1}: {speeds}", flush=True)
    return [
        (f"speed of {what} (rounds: {', '.join(f'{each:.2f}' for each in found)})", statistics.median(found), True)
        for what, found in ratios.items()
    ]


def harvest(bench: Bench, aliases: list[str], earlier: list[Path]) -> tuple[float, int]:
    """Harvest all clips again; return seconds and bytes moved."""
    bench.fresh()
    bench.plan(sleep=SLEEP_S)
    boards = [SshBoard(find_board(alias)) for alias in aliases]
    for board in boards:
        board.runners = {"fake": "fakerunner"}
    waves = {name: np.load(bench.folder / "clips" / f"{name}.npy") for name in bench.expected}
    began = time.monotonic()
    job.run_session(
        boards, bench.binary, [], bench.work, decode=False, harvest=["hidden"], waves=waves, earlier=earlier
    )
    return time.monotonic() - began, sum(board.moved_bytes for board in boards)


def second_board(bench: Bench) -> None:
    """Add one more board behind the same sshd, with its own scratch folder and lock."""
    config = bench.folder / "config2"
    config.write_text((bench.folder / "config").read_text().replace("Host loop", "Host other"))
    table = bench.boards.read_text().replace("[loop]", "[other]").replace('/lock"', '/lock2"')
    table = table.replace("board disk/scratch", "board disk/other").replace(f'{bench.folder}/config"', f'{config}"')
    bench.boards.write_text(bench.boards.read_text() + table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["transfer", "again", "share"])
    parser.add_argument("--mb", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    rows: list[tuple[str, float, bool, str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sshd").mkdir()
        loop = Loopback(folder / "sshd")
        bench = None
        try:
            os.environ["NIGHTJAR_BOARDS"] = str(loop.boards(folder / "plain.toml"))
            if "transfer" in asked.what:
                for what, ratio, _ in transfer(folder, loop, asked.mb, asked.repeats):
                    bound = "aes128-gcm" not in what  # sftp by default; the other row shows the effect of the cipher
                    rows.append((what, ratio, ratio >= 0.8 or not bound, ">= 0.8" if bound else "none"))
            bench = Bench(folder, 200, loop)
            second_board(bench)
            os.environ["NIGHTJAR_BOARDS"] = str(bench.boards)
            if "again" in asked.what:
                _, first = harvest(bench, ["loop"], [])
                shutil.move(bench.work / "harvest", folder / "earlier")
                _, second = harvest(bench, ["loop"], [folder / "earlier"])
                rows.append(("bytes of a second harvest / the first", second / first, second < first / 100, "< 0.01"))
            if "share" in asked.what:
                one_s, _ = harvest(bench, ["loop"], [])
                two_s, _ = harvest(bench, ["loop", "other"], [])
                what = f"seconds of two boards / one, 200 clips of {SLEEP_S} s ({two_s:.1f} / {one_s:.1f})"
                rows.append((what, two_s / one_s, two_s <= 0.6 * one_s, "<= 0.6"))
        finally:
            if bench is not None:
                bench.close()
            loop.stop()
    print("\n| what | ratio | bound | |\n|---|---|---|---|")
    for what, ratio, good, bound in rows:
        print(f"| {what} | {ratio:.3f} | {bound} | {'ok' if good else 'MISSED'} |")
    return 0 if all(good for _, _, good, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
