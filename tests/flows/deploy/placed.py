"""What lies on a board after a deploy, and a board whose runtime lies."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.loopback import Loopback

NAME = "one"
Deploy = Callable[..., tuple[int, dict[str, Any]]]


def asked(precision: str, speech: list[str]) -> list[str]:
    return [
        "deploy",
        "--board",
        "loop",
        "--name",
        NAME,
        "--precision",
        precision,
        *speech,
        "--calibration-samples",
        "4",
    ]


def place(loop: Loopback) -> Path:
    return loop.scratch / "deployed" / NAME


def current(loop: Loopback) -> str:
    link = place(loop) / "current"
    if not link.is_symlink():
        return ""
    assert (link / "transcribe.py").is_file(), "current leads nowhere"
    return link.readlink().name


def releases(loop: Loopback) -> set[str]:
    return {path.name for path in (place(loop) / "releases").iterdir()}


def on_board(loop: Loopback, *words: str) -> str:
    """Run a command on the board as its user would: by ssh, with nothing of ours on the way."""
    config = loop.folder / "ssh_config"
    command = ["ssh", "-F", str(config), "loop", "cd / && " + shlex.join(words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lying_runtime(loop: Loopback, folder: Path, body: str) -> Path:
    """Write a boards.toml whose python has another onnxruntime behind the same version."""
    (folder / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name != 'onnxruntime': return None\n"
        "        sys.meta_path.remove(self)\n"
        "        import onnxruntime as ort\n"
        "        own = ort.InferenceSession.run\n"
        f"        def run(self, *a, **k):\n            {body}\n"
        "        ort.InferenceSession.run = run\n"
        "        return importlib.util.spec_from_loader(name, Same(ort))\n"
        "class Same:\n"
        "    def __init__(self, module): self.module = module\n"
        "    def create_module(self, spec): return self.module\n"
        "    def exec_module(self, module): pass\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    python = folder / "lying python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(folder))} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return loop.boards(folder / "lying.toml", python=str(python))
