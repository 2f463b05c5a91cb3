"""An S3 server on loopback: moto's, which is a stand-in in Python for Amazon's, in a process of its own.

No server proper can be had from the registries that this is developed with. What moto is asked for here is what any
of them has: put, get, list, delete, and `If-None-Match: *`. It keeps its objects in memory: killed, it has lost them.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.conftest import need


def free_port() -> int:
    """Name a port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class S3:
    """A server with one bucket, which can be killed and started again at the same address."""

    bucket = "artifacts"

    def __init__(self, folder: Path) -> None:
        absent = [name for name in ("s3fs", "moto", "flask") if importlib.util.find_spec(name) is None]
        need("s3", not absent, f"no {', '.join(absent)}: pip install -c constraints.txt '.[dev,remote]'")
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self.port = folder / "log", free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",  # Amazon's own example
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Have it run, with its bucket."""
        if self.process is None:
            with self.log.open("ab") as log:
                command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
                self.process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | self.environment)
            end = time.monotonic() + 120
            while not self._answers():
                assert self.process.poll() is None, self.log.read_text()[-2000:]
                assert time.monotonic() < end, self.log.read_text()[-2000:]
                time.sleep(0.1)
        import fsspec

        files = fsspec.filesystem(
            "s3",
            skip_instance_cache=True,
            use_listings_cache=False,
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            key=self.environment["AWS_ACCESS_KEY_ID"],
            secret=self.environment["AWS_SECRET_ACCESS_KEY"],
        )
        if not files.exists(self.bucket):
            files.mkdir(self.bucket)

    def kill(self) -> None:
        """End it as a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    stop = kill

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.environment['AWS_ENDPOINT_URL']}/moto-api/", timeout=5):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False
