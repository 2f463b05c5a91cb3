"""Run this NPU's files: the only module that goes to a board. A real NPU's calls the vendor's runtime here."""

from targets.onnx.runner import open_runner

__all__ = ["open_runner"]
