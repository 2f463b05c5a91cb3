"""An SDK whose import kills the process, as one for another processor does; standard library only."""

import os
from typing import Any


def load_sdk() -> None:
    """Crash."""
    os.abort()


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Import the SDK."""
    load_sdk()
    return {}
