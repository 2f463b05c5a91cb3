#!/usr/bin/env python3
"""Transcribe wav files: 16 kHz, 16-bit PCM, any number of channels.

    python3 transcribe.py [--language en] [--json] FILE.wav …

It needs python3, numpy and the vendor's runtime; everything else lies beside it. It runs the decode loop that was
scored on the binary's parts.
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

HERE = Path(__file__).resolve().parent  # not `current`: a switch meanwhile does not mix two releases


class Recogniser:
    """The parts, the tables and the tokens of one bundle."""

    def __init__(self) -> None:
        import numpy as np

        self.manifest, self.model = _read_json("manifest.json"), _read_json("model.json")
        self.decode = importlib.import_module(f"models.{self.model['family']}.decode")
        self.cut = importlib.import_module("nightjar.device.pause_splitter").cut
        self.tables = {path.stem: np.load(path, mmap_mode="r") for path in HERE.glob("*_embedding.npy")}
        runners = importlib.import_module("nightjar.device.part_runners")
        self.parts = runners.PartRunners(HERE, _read_json("binary.json")["parts"])
        rows = [line.split() for line in (HERE / "tokens.txt").read_bytes().splitlines()]
        self.tokens = {int(number): base64.b64decode(text) for text, number in rows}

    def transcribe(self, samples: Any, language: str) -> str:
        """Return the text of int16 samples at 16 kHz; audio longer than the window is cut at pauses."""
        texts = []
        for start, end in self.cut(samples, self.model["recipe"]["window_s"]):
            features = self.decode.features(samples[start:end].astype("float32") / 32768.0, self.model)
            encoded = self.decode.encode(self.parts, features, self.model)
            decoded = self.decode.decode(self.parts, encoded, self.model, language, self.tables)
            text = b"".join(self.tokens.get(token, b"") for token in decoded["tokens"])
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
        raise ValueError(f"{path} is not a wav file of PCM ({error}): ffmpeg -i IN -ar 16000 -ac 1 OUT.wav") from error
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
    parser = argparse.ArgumentParser(description="Transcribe wav files.")
    parser.add_argument("files", nargs="+", metavar="FILE.wav")
    parser.add_argument("--language", help="language spoken, or auto; default: that of the port")
    parser.add_argument("--json", action="store_true", help="a JSON line per file, with seconds")
    arguments = parser.parse_args()
    sys.path.insert(0, str(HERE / "lib"))
    sys.dont_write_bytecode = True  # or files would appear that the manifest does not list
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads keep spinning and take a core from the encoder
    try:
        recogniser = Recogniser()
        for path in arguments.files:
            samples, began = read_wav(path), time.perf_counter()
            text = recogniser.transcribe(samples, arguments.language or recogniser.manifest["language"])
            result = {"file": path, "text": " ".join(text.split()), "seconds": round(time.perf_counter() - began, 5)}
            if arguments.json:
                print(json.dumps({**result, "audio_s": round(len(samples) / 16000, 4)}), flush=True)
            else:
                print(result["text"] if len(arguments.files) == 1 else f"{path}: {result['text']}", flush=True)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print(f"transcribe.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, (OSError, ValueError)) else 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
