"""Run this NPU's files: the one module that travels to a board. Another NPU's calls its own runtime here."""

from targets.onnx.runner import open_runner

__all__ = ["open_runner"]
