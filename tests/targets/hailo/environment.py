"""An environment of the doubles' own, as `nightjar toolchain install hailo --sdk` would leave one of the real SDK."""

import json
import site
import sys
from pathlib import Path
from typing import Any

DOUBLES = Path(__file__).parent / "doubles"


def make_environment(folder: Path, version: str = "3.33.1") -> Path:
    """Make `folder`/hailo: an interpreter that has the doubles and, of ours, numpy and onnx; return `folder`."""
    place = folder / "hailo"
    packages = place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    (place / "bin").mkdir()
    (place / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    home = Path(sys.executable).resolve().parent
    (place / "pyvenv.cfg").write_text(f"home = {home}\nversion = {sys.version.split()[0]}\n")
    (packages / "doubles.pth").write_text("\n".join([str(DOUBLES), *site.getsitepackages()]) + "\n")
    metadata = packages / f"hailo_dataflow_compiler-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: hailo_dataflow_compiler\nVersion: {version}\n")
    (place / "installed.json").write_text("{}")
    return folder


def inject(folder: Path, **faults: Any) -> None:
    """Make the doubles of an environment do something wrong: call -> [fault, …]; see doubles/injected.py."""
    place = folder / "hailo" if (folder / "hailo").is_dir() else folder
    (place / "inject.json").write_text(json.dumps({call.replace("_", " "): found for call, found in faults.items()}))
