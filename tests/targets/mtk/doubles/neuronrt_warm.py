"""The double of neuronrt without its start of seconds: a server has torch, and forks for every call.

`serve NAME` is that server, on an abstract socket; anything else is a call, whose output and exit status are ours.
"""

import contextlib
import json
import os
import runpy
import socket
import sys
from pathlib import Path

NAME = "NIGHTJAR_DOUBLE_NEURONRT_SERVER"


def serve(name: str) -> None:
    """Answer calls until it is ended."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0{name}")
        listening.listen(16)
        print("listening", flush=True)  # who calls while torch is imported waits
        import torch

        import targets.mtk.tflite  # noqa: F401 (a fork has it)

        torch.set_num_threads(1)
        while True:
            caller, _ = listening.accept()
            with caller:
                asked, files, *_ = socket.recv_fds(caller, 1 << 16, 2)
                if not (pid := os.fork()):
                    call(json.loads(asked), files)
                for file in files:
                    os.close(file)
                caller.send(bytes([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255]))


def call(asked: dict[str, list[str]], files: list[int]) -> None:
    """Be neuronrt.py, with the caller's arguments and output."""
    status = 70
    try:
        for number, file in enumerate(files, 1):
            os.dup2(file, number)
        sys.argv = ["neuronrt", *asked["arguments"]]
        try:
            runpy.run_path(str(Path(__file__).with_name("neuronrt.py")), run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["serve"]:
        serve(arguments[1])
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(f"\0{os.environ[NAME]}")
        socket.send_fds(server, [json.dumps({"arguments": arguments}).encode()], [1, 2])
        return (server.recv(1) or b"\x46")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
