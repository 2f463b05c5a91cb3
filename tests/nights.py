"""Nights in fast motion: a config, a checkpoint that changes, and a clock that is turned by hand."""

import json
from pathlib import Path
from typing import Any

from nightjar.cli.main import main
from tests.flows.conftest import ROOT, shipped_speech

NANO = ROOT / "data" / "whisper-nano" / "whisper-nano.pt"


def altered(path: Path, noise: float, seed: int) -> Path:
    """Write whisper-nano with noise in its weights, `noise` times as strong as they are."""
    import torch

    loaded = torch.load(NANO, weights_only=True)
    chance = torch.Generator().manual_seed(seed)
    for name, tensor in loaded["model_state_dict"].items():
        if tensor.ndim > 1:
            drawn = torch.randn(tensor.shape, generator=chance) * tensor.float().std() * noise
            loaded["model_state_dict"][name] = (tensor.float() + drawn).to(tensor.dtype)
    torch.save(loaded, path)
    return path


def write_config(folder: Path, cells: str) -> Path:
    flags = shipped_speech(folder, calibration=6, evaluation=8)
    path = folder / "nights.toml"
    path.write_text(
        f'[checkpoints]\nnano = "current.pt"\n[defaults]\ncalibration_set = "{flags[1]}"\n'
        f'test_set = "{Path(flags[3]).name}"\ncalibration_samples = 6\n{cells}'
    )
    return path


class Nights:
    """A config, a history and a store of their own, and a clock that a test turns."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self.config, self.current = folder, config, folder / "current.pt"

    def run(self, number: int, *flags: str) -> tuple[int, dict[str, Any]]:
        """Run night `number` of November; return the exit code and what --json has."""
        said = self.folder / "night.json"
        said.unlink(missing_ok=True)
        code = main(
            [
                *("nightly", "--config", str(self.config), "--night", f"2026-11-{number:02d}T02:00:00Z"),
                *("--json", str(said), *flags),
            ]
        )
        assert code in (0, 1), f"night {number} ended with {code}"
        return code, json.loads(said.read_text())


def worse(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """List the regressions of a night: cell, kind, and the first word of the likely cause."""
    found = [each for each in results["findings"] if each["regression"] and each["against"] == "last"]
    return sorted((each["cell"], each["kind"], each["causes"].split()[0]) for each in found)


def outcomes(results: dict[str, Any]) -> dict[str, str]:
    return {cell["cell"]: cell["outcome"] for cell in results["cells"]}
