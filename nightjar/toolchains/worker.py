"""Run one module inside a vendor's environment, with JSON in and out; standard library only.

The module's `main(job) -> result` does the work. An exception becomes `{"error": kind, "message": line}`; the
traceback goes to stderr, for the log.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
import types
import warnings
from pathlib import Path
from typing import Any


def main(module: str, job_file: str, result_file: str) -> int:
    """Run a module on a job and write its result or its error; return the exit status."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # those of the SDK's own code
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    result: dict[str, Any]
    try:
        stub_target_packages(module)
        result = {"result": importlib.import_module(module).main(job)}
    except Exception as exc:  # any class of an SDK
        traceback.print_exc()
        lines = str(exc).strip().splitlines()
        kind = next((k for k in (MemoryError, ImportError) if isinstance(exc, k)), type(exc))  # the caller's kinds
        result = {"error": kind.__name__, "message": lines[-1][:500] if lines else type(exc).__name__}
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")
    return 1 if "error" in result else 0


def serve(descriptor: int) -> None:
    """Fork a process for each call that the socket names, until its other end closes (fork_server.py).

    A module's `load_sdk()` runs here, once, so that each call has the SDK imported.
    """
    calls = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies of the waiting processes
    while True:
        message, descriptors, _, _ = socket.recv_fds(calls, 2**16, 3)
        if not message:
            return
        request = json.loads(message)
        with contextlib.suppress(Exception):  # the call itself meets the error, and reports it
            module = request["arguments"][0]
            stub_target_packages(module)
            if request["load_sdk"]:
                getattr(importlib.import_module(module), "load_sdk", int)()
        if not os.fork():
            calls.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _call_and_answer(request, *descriptors)
        for each in descriptors:
            os.close(each)


def _call_and_answer(request: dict[str, Any], stdin: int, stdout: int, answers: int) -> None:
    """Run a call in a process group of its own; answer with its process id, then its exit status. Never returns."""
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        os.close(answers)
        for number, descriptor in enumerate((stdin, stdout, stdout)):
            os.dup2(descriptor, number)
        os.chdir(request["folder"])
        status = 1
        try:
            status = main(*request["arguments"])
        except SystemExit as exc:
            status = exc.code if isinstance(exc.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    with contextlib.suppress(OSError):  # the child did it, or has ended
        os.setpgid(pid, pid)
    os.write(answers, b"%d\n" % pid)
    os.close(stdout)
    _, status = os.waitpid(pid, 0)
    os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def stub_target_packages(module: str) -> None:
    """Register the parents of a target's module without their __init__.py: those need pydantic, absent from an SDK."""
    names = module.split(".")[:-1]
    for end in range(2, len(names) + 1):
        name = ".".join(names[:end])
        if names[0] == "targets" and name not in sys.modules:
            package = types.ModuleType(name)
            package.__path__ = [str(Path(__file__).resolve().parents[2].joinpath(*names[:end]))]
            sys.modules[name] = package


def _exit_with_parent() -> None:
    """Exit with the calling process: this pipe closes when it ends, even when it is killed."""
    while os.read(0, 4096):  # not sys.stdin, whose lock a thread must not hold when Python exits
        pass
    os.killpg(0, signal.SIGKILL)
