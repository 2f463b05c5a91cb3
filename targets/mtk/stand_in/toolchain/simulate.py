"""What a session runs in the stand-in's environment: LiteRT's interpreter."""

from targets.mtk.stand_in.runner import open_runner

__all__ = ["open_runner"]
