"""The board service against sessions by ssh, and 50,000 clips through it: `.venv/bin/python benchmarks/service.py`.

Both harvest the same clips with the same cheap encoder (a convolution and a projection, 5 s window, hidden 250 × 32 in
float16, 16 kB) on this machine; ssh goes through a real sshd on loopback. They take turns, and the ratio of the medians
counts. The long run samples the resident memory of both processes while the dataset grows.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nightjar.dataset.reader import open_dataset  # noqa: E402
from nightjar.request import HarvestRequest  # noqa: E402
from nightjar.sessions.bulk_harvest import harvest_speech  # noqa: E402
from tests.loopback import Loopback  # noqa: E402
from tests.served import Server, boards, rss, small_binary  # noqa: E402


def speech(folder: Path, count: int, seconds: float) -> Path:
    """Write clips of noise: a thousand different ones, the others are links to these."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"c{number:06d}.wav"
        if number < 1000:
            soundfile.write(path, (rng.standard_normal(int(16000 * seconds)) * 900).astype(np.int16), 16000)
        else:
            os.link(folder / f"c{number % 1000:06d}.wav", path)
    return folder


def ratio(work: Path, clips: int, turns: int) -> None:
    """Harvest the same clips by ssh and by the service in turn; print clips per second and their ratio."""
    binary, spoken = small_binary(work / "small" / "binary"), speech(work / "some", clips, 2.0)
    (work / "sshd").mkdir()
    sshd = Loopback(work / "sshd")
    seconds: dict[str, list[float]] = {"ssh": [], "service": []}
    try:
        with Server(binary) as server:
            ssh = sshd.boards(work / "ssh.toml").read_text()
            toml = boards(work, server.port)
            toml.write_text(toml.read_text() + ssh)
            os.environ["NIGHTJAR_BOARDS"] = str(toml)
            for turn in range(turns):
                for way, board in (("ssh", "loop"), ("service", "svc")):
                    out = work / f"{way}{turn}"
                    began = time.monotonic()
                    harvest_speech(HarvestRequest(binary=binary, speech=spoken, board=board, out=out))
                    seconds[way].append(time.monotonic() - began)
                one, other = (open_dataset(work / f"{way}{turn}") for way in seconds)
                same = all(
                    a.tensors["hidden"].tobytes() == b.tensors["hidden"].tobytes()
                    for a, b in zip(one, other, strict=True)
                )
                print(
                    f"turn {turn}: ssh {seconds['ssh'][-1]:.1f} s, service {seconds['service'][-1]:.1f} s, same {same}"
                )
    finally:
        sshd.stop()
    rates = {way: clips / median(taken) for way, taken in seconds.items()}
    print(
        f"{clips} clips of 2 s: ssh {rates['ssh']:.0f} clips/s, service {rates['service']:.0f} clips/s, "
        f"ratio {rates['service'] / rates['ssh']:.2f}"
    )


def long_run(work: Path, clips: int) -> None:
    """Harvest many clips through the service by the command line; print the memory of both processes."""
    binary = small_binary(work / "long" / "binary", n_frames=100, rows=50, width=32)
    spoken = speech(work / "many", clips, 0.5)
    out = work / "dataset"
    with Server(binary) as server:
        environment = os.environ | {"NIGHTJAR_BOARDS": str(boards(work, server.port)), "PYTHONPATH": str(ROOT)}
        flags = ["--binary", binary, "--speech", spoken, "--board", "svc", "--out", out, "--shard-mib", "8"]
        began = time.monotonic()
        command = [sys.executable, "-m", "nightjar.cli.main", "harvest", *map(str, flags)]
        host = subprocess.Popen(command, cwd=ROOT, env=environment)
        marks = [mark for mark in (5_000, 10_000, 20_000, 30_000, 40_000, 50_000) if mark <= clips]
        first = 0.0
        while host.poll() is None:
            done = kept(out)
            first = first or (time.monotonic() if done else 0.0)
            if marks and done >= marks[0] - 100:
                mib = [f"{size / 2**20:.0f} MiB" for size in (rss(host.pid), server.rss())]
                print(f"{marks.pop(0)} clips after {time.monotonic() - began:.0f} s: host {mib[0]}, service {mib[1]}")
            time.sleep(0.05)
        ended = time.monotonic()
    assert host.returncode == 0
    assert not marks, marks
    dataset = open_dataset(out)
    print(
        f"{len(dataset)} clips of 0.5 s, hidden 50 × 32 (3.2 kB), {clips / (ended - first):.0f} clips/s, "
        f"{first - began:.0f} s before that to read the list"
    )


def kept(out: Path) -> int:
    """Count the clips of an unfinished dataset."""
    per_shard = 8 * 2**20 // 3200
    lines = sum(path.read_bytes().count(b"\n") for path in out.glob("*.jsonl"))
    return len(list(out.glob("shard-*.json"))) * per_shard + lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1500, help="clips of the comparison")
    parser.add_argument("--turns", type=int, default=3, help="turns of the comparison; 0: none")
    parser.add_argument("--many", type=int, default=50_000, help="clips of the long run; 0: none")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.turns:
            ratio(Path(folder), given.clips, given.turns)
        if given.many:
            long_run(Path(folder), given.many)
