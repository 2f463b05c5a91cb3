"""A store, speech and two toy releases that tests of deploy share."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.whisper.vocabulary import token_bytes
from nightjar.cli.main import main
from nightjar.deploy.bundle import PortSummary, read_manifest, write_bundle
from nightjar.deploy.rollout import Canary
from nightjar.speech.manifest import load_speech
from tests.flows.conftest import shipped_speech, write_speech
from tests.flows.deploy.placed import Deploy, asked
from tests.loopback import Loopback


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("store")
        patch.setenv("NIGHTJAR_STORE", str(folder))
        patch.setenv("NIGHTJAR_REPORTS", str(tmp_path_factory.mktemp("reports")))
        yield folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return shipped_speech(tmp_path_factory.mktemp("speech"), calibration=4, evaluation=6)


@pytest.fixture
def run(loop: Loopback, speech: list[str], tmp_path: Path) -> Deploy:
    """Deploy whisper-nano in a precision; return the exit code and the results."""

    def run(precision: str = "fp", *more: str) -> tuple[int, dict[str, Any]]:
        written = tmp_path / "deploy.json"
        written.unlink(missing_ok=True)
        code = main([*asked(precision, speech), *more, "--json", str(written)])
        return code, json.loads(written.read_text()) if written.exists() else {}

    return run


@pytest.fixture(scope="module")
def toys(random_checkpoint: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Canary]:
    """Two bundles of weights of noise, float and int8, and a canary of their own transcripts."""
    words = {f"c{number}": word for number, word in enumerate(("red", "blue"))}
    speech = write_speech(tmp_path_factory.mktemp("toy"), words)
    clips, made = load_speech(speech), []
    for precision in ("fp", "int8"):
        model = ["--model", "toy", "--checkpoint", str(random_checkpoint), "--calibration-set", str(speech)]
        written = speech.parent / "t.json"
        command = ["transcribe", *(str(clip.audio) for clip in clips), "--precision", precision, *model]
        assert main([*command, "--json", str(written)]) == 0
        built = max((store / "build").iterdir(), key=lambda path: path.stat().st_mtime)
        described = json.loads((built / "model.json").read_text())
        out = speech.parent / precision
        out.mkdir()
        figures = {
            "verdict": "PASS",
            "tier": "host",
            "unit": "word",
            "interval": (0, 0),
            "command": "",
            "made_from": {},
        }
        counts = dict.fromkeys(("wer", "wer_float", "wer_stock", "delta_wer", "clips", "words", "skipped"), 0)
        write_bundle(
            out,
            binary=built,
            modules=["models.whisper.decode", "targets.onnx.runner"],
            tokens=token_bytes(described),
            runtimes={},
            model="toy",
            language="en",
            port=PortSummary.model_validate({**figures, **counts, "made_from": {}}),
        )
        texts = {Path(file["file"]).stem: file["text"] for file in json.loads(written.read_text())["files"]}
        made.append((out, texts))
    assert all(made[0][1].values())
    assert read_manifest(made[0][0]).id != read_manifest(made[1][0]).id
    return [folder for folder, _ in made], Canary(clips, made[0][1], 100.0)
