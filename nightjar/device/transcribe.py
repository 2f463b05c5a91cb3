#!/usr/bin/env python3
"""Print what is said in wav files: 16 kHz, 16-bit PCM, any number of channels.

    python3 transcribe.py [--language en] [--json] FILE.wav …

Needs python3, numpy and the vendor's runtime; everything else lies beside it. It opens the parts, runs the decode loop
that was scored, and turns tokens into text.
"""

from __future__ import annotations  # boards have older Pythons

import argparse
import base64
import importlib
import json
import os
import sys
import time
import wave
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent  # not `current`: a switch while we run does not mix two releases


class PartRunners:
    """Map each part to the runner that it was compiled for."""

    def __init__(self, parts: dict[str, dict[str, Any]]) -> None:
        self.runners: dict[str, Any] = {}
        for name in sorted({entry["runner"] for entry in parts.values()}):
            its = {part: entry for part, entry in parts.items() if entry["runner"] == name}
            opened = importlib.import_module(f"targets.{name}.runner").open_runner(HERE, its, {"own_process": True})
            self.runners.update(dict.fromkeys(its, opened))

    def run(self, part: str, inputs: Any, constant: Any = None) -> Any:
        return self.runners[part].run(part, inputs, constant or {})


class Recogniser:
    """Hold the parts, the tables and the tokens of one bundle."""

    def __init__(self) -> None:
        import numpy as np

        self.manifest, self.model = _read_json("manifest.json"), _read_json("model.json")
        self.decode = importlib.import_module(f"models.{self.model['family']}.decode")
        self.cut = importlib.import_module("nightjar.device.pause_splitter").cut
        self.tables = {path.stem: np.load(path, mmap_mode="r") for path in HERE.glob("*_embedding.npy")}
        self.parts = PartRunners(_read_json("binary.json")["parts"])
        rows = [line.split() for line in (HERE / "tokens.txt").read_bytes().splitlines()]
        self.tokens = {int(number): base64.b64decode(text) for text, number in rows}

    def hear(self, samples: Any, language: str) -> str:
        """Return the text of int16 samples at 16 kHz; what is longer than the window is cut in its pauses."""
        texts = []
        for start, end in self.cut(samples, self.model["recipe"]["window_s"]):
            features = self.decode.features(samples[start:end].astype("float32") / 32768.0, self.model)
            encoded = self.decode.encode(self.parts, features, self.model)
            heard = self.decode.decode(self.parts, encoded, self.model, language, self.tables)
            text = b"".join(self.tokens.get(token, b"") for token in heard["tokens"])
            texts.append(text.decode("utf-8", "replace").strip())
        return " ".join(filter(None, texts))


def _read_json(name: str) -> Any:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def read_wav(path: str) -> Any:
    """Return a wav file as int16 mono samples; raises ValueError for anything but 16 kHz 16-bit PCM."""
    import numpy as np

    try:
        with wave.open(path, "rb") as file:
            rate, bits, channels = file.getframerate(), 8 * file.getsampwidth(), file.getnchannels()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is no wav of PCM ({error}): ffmpeg -i IN -ar 16000 -ac 1 OUT.wav") from error
    if (rate, bits) != (16000, 16):
        raise ValueError(f"{path} has {rate} Hz, {bits} bits, not 16000, 16: ffmpeg -i IN -ar 16000 -ac 1 OUT.wav")
    frame = 2 * channels
    samples = np.frombuffer(data[: len(data) // frame * frame], "<i2").reshape(-1, channels)
    return np.rint(samples.mean(axis=1)).astype(np.int16) if channels > 1 else samples[:, 0]


def main() -> int:
    """Print a line per file; an error is one line on stderr."""
    wanted = _read_json("manifest.json")["python"]
    if sys.version_info < tuple(map(int, wanted.split("."))):
        print(f"transcribe.py needs Python {wanted} or later, this is {sys.version.split()[0]}", file=sys.stderr)
        return 3
    parser = argparse.ArgumentParser(description="Print what is said in wav files.")
    parser.add_argument("files", nargs="+", metavar="FILE.wav")
    parser.add_argument("--language", help="language spoken")
    parser.add_argument("--json", action="store_true", help="a JSON line per file, with seconds")
    asked = parser.parse_args()
    sys.path.insert(0, str(HERE / "lib"))
    sys.dont_write_bytecode = True  # a bundle stays what its manifest says
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads go on spinning and take a core from the encoder
    try:
        recogniser = Recogniser()
        for path in asked.files:
            samples, began = read_wav(path), time.perf_counter()
            text = recogniser.hear(samples, asked.language or recogniser.manifest["language"])
            said = {"file": path, "text": " ".join(text.split()), "seconds": round(time.perf_counter() - began, 5)}
            if asked.json:
                print(json.dumps({**said, "audio_s": round(len(samples) / 16000, 4)}), flush=True)
            else:
                print(said["text"] if len(asked.files) == 1 else f"{path}: {said['text']}", flush=True)
    except (OSError, ValueError) as error:
        print(f"transcribe.py: {error}", file=sys.stderr)
        return 2
    except (ImportError, RuntimeError) as error:
        print(f"transcribe.py: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
