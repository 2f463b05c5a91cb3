"""The runners of a binary's parts; sent to boards, standard library only."""

from __future__ import annotations  # boards have older Pythons

import importlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class PartRunners:
    """Run each part with the runner that it was compiled for, and sum the seconds per part."""

    def __init__(self, folder: Path, parts: Mapping[str, Mapping[str, Any]], modules: Mapping[str, str] = {}) -> None:
        """modules: a runner's module by its name, where it is not the target's runner.py."""
        self.seconds: dict[str, float] = {}
        self._runner_of: dict[str, Any] = {}
        for name in sorted({entry["runner"] for entry in parts.values()}):
            own = {part: entry for part, entry in parts.items() if entry["runner"] == name}
            module = importlib.import_module(modules.get(name, f"targets.{name}.runner"))
            self._runner_of.update(dict.fromkeys(own, module.open_runner(folder, own, {"own_process": True})))

    def run(self, part: str, inputs: Any, constant: Any = None, **into: Any) -> Any:
        """Run a part on tensors by name; see docs/add-a-target.md for `constant` and `into`."""
        start = time.perf_counter()
        outputs = self._runner_of[part].run(part, inputs, constant or {}, **into)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
        return outputs

    def close(self) -> None:
        for runner in set(self._runner_of.values()):
            runner.close()
