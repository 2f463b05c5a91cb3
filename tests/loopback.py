"""A real sshd on this machine, with keys, port and configuration of its own: the board of tests."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Loopback:
    """One sshd, the ssh config that leads to it, and the boards.toml that names it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scratch = folder, folder / "scratch é'; $(x)"
        for name in ("host", "other", "user", "stranger"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(keygen, check=True, capture_output=True)
        shutil.copyfile(folder / "user.pub", folder / "authorized")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\n"
            f"PidFile {folder}/pid\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\n"
            "KbdInteractiveAuthentication no\nMaxStartups 100\nSetEnv OMP_NUM_THREADS=1\nSubsystem sftp internal-sftp\n"
        )
        self.known("host")
        self.configure(folder / "ssh_config")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        """Let sshd listen."""
        assert SSHD is not None
        self._sshd = subprocess.Popen(
            [SSHD, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(self.folder / "log")],
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.05)

    def kill_sessions(self) -> None:
        """SIGKILL the sshd of every connection, by the port it came to."""
        listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()]
        ours = {str(self._sshd.pid)}
        for _ in range(3):  # the listener, its children, and theirs
            ours |= {pid for pid, parent, args in rows if parent in ours and "sshd" in args}
        for pid in ours - {str(self._sshd.pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def _answers(self) -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        self._sshd.terminate()
        self._sshd.wait()

    def known(self, key: str, name: str = "known_hosts") -> Path:
        """Write a known_hosts file that knows the board by this key."""
        public = " ".join((self.folder / f"{key}.pub").read_text().split()[:2])
        (self.folder / name).write_text(f"[127.0.0.1]:{self.port} {public}\n")
        return self.folder / name

    def configure(self, path: Path, known: Path | None = None, key: str = "user", port: int = 0) -> Path:
        """Write an ssh config whose alias `loop` is this board."""
        path.write_text(
            f"Host loop\n  HostName 127.0.0.1\n  Port {port or self.port}\n  IdentityFile {self.folder}/{key}\n"
            f"  IdentitiesOnly yes\n  UserKnownHostsFile {known or self.folder / 'known_hosts'}\n"
            "  GlobalKnownHostsFile none\n"
        )
        return path

    def boards(self, path: Path, config: Path | None = None, python: str = sys.executable, more: str = "") -> Path:
        """Write a boards.toml that says of `loop` what ssh does not know."""
        quoted = str(self.scratch).replace('"', '\\"')
        path.write_text(
            f'[loop]\nscratch = "{quoted}"\npython = "{python}"\nlock = "{self.folder}/lock"\n'
            f'ssh_config = "{config or self.folder / "ssh_config"}"\n{more}'
        )
        return path
