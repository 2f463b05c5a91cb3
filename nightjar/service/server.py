"""The board's end of the service: one stream of clips at a time, worked on side by side, results as they end.

Memory is bounded by `in_flight`: a clip takes a slot before it is read, and gives it back when its result has been
taken by the transport. A host that does not read stops the sending, then the reading, then itself.
"""

from __future__ import annotations  # boards have older Pythons

import contextlib
import fcntl
import hashlib
import hmac
import importlib
import json
import os
import queue
import socket
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator, NamedTuple  # noqa: UP035 (collections.abc has no [] in Python 3.8)

import grpc
import numpy as np

from nightjar.device.agent import holder_of, lock_file
from nightjar.device.health import facts
from nightjar.device.session import PartRunners
from nightjar.errors import BadOptions, Broken, SessionFailed
from nightjar.service import service_pb2 as pb
from nightjar.service.protocol import KEEPALIVE, SERVICE, SLACK_BYTES, TOKEN_KEY, Endpoint, binary_digest

PERMITTED = [("grpc.http2.min_ping_interval_without_data_ms", 5_000), ("grpc.http2.max_ping_strikes", 0)]


class Refusal(NamedTuple):
    """Why a stream ends early: a status and one line."""

    code: Any
    words: str


class Ended(NamedTuple):
    """The host has sent its last clip; so many there were."""

    clips: int


class ClipStream:
    """Hold what is between the arrival of clips and the sending of their results, in one stream."""

    def __init__(self, limit: int) -> None:
        self.slots = threading.Semaphore(limit)
        self.done: queue.SimpleQueue[pb.Result | Refusal | Ended | None] = queue.SimpleQueue()
        self.due: dict[str, float] = {}  # clip id -> when its result must be there, monotonic seconds
        self.over = False

    def end(self) -> None:
        """Wake whoever waits; the host is gone or has everything."""
        self.over = True
        self.slots.release()
        self.done.put(None)

    def late(self) -> str:
        """Name a clip that is beyond its deadline, empty for none."""
        now = time.monotonic()
        return next((name for name, due in list(self.due.items()) if due < now), "")


class EncoderPool:
    """Hold one loaded encoder per worker; a worker is a thread that takes clips of whichever stream."""

    def __init__(self, folder: Path, workers: int) -> None:
        try:
            self.model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            described = json.loads((folder / "binary.json").read_text(encoding="utf-8"))
            entry, target = described["parts"]["encoder"], Path(described["target"]).name
            shapes = {out["name"]: tuple(out["shape"][1:]) for out in self.model["parts"]["encoder"]["outputs"]}
            if "chunk" in self.model:
                raise ValueError("its encoder hears a stream chunk by chunk, and a service hears whole windows")
            self.outputs = {name: shapes[name] for name in self.model["harvest"]}
            self.wave_bytes = int(self.model["recipe"]["window_s"] * 16000) * 2
            self.binary = binary_digest(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadOptions(
                f"{folder} is no binary to serve ({one_line(error)}): give a folder that build wrote"
            ) from error
        preflight = Path(__file__).parents[2] / "targets" / target / "preflight.py"
        self._probe = preflight.read_text(encoding="utf-8") if preflight.is_file() else ""
        self.result_bytes = sum(2 * int(np.prod(shape)) for shape in self.outputs.values())
        try:
            self._family = importlib.import_module(f"models.{self.model['family']}.decode")
            opened = [PartRunners(folder, {"parts": {"encoder": entry}, "runners": {}}) for _ in range(workers)]
        except Exception as error:  # a vendor's runtime raises whatever it likes
            raise SessionFailed(
                f"the encoder in {folder} does not load ({one_line(error)}): look at the file and its runtime"
            ) from error
        self._todo: queue.SimpleQueue[tuple[pb.Clip, ClipStream]] = queue.SimpleQueue()
        for parts in opened:
            # A daemon, for a hung runtime must not keep the process.
            threading.Thread(target=self._work, args=(parts,), daemon=True).start()

    def facts(self, runtimes: list[str]) -> dict[str, Any]:
        """Say what this board is, in the words of a session by ssh."""
        return facts(sorted({"numpy", *runtimes}), self._probe)

    def take(self, clip: pb.Clip, flight: ClipStream) -> None:
        """Put a clip in line."""
        self._todo.put((clip, flight))

    def problem(self, clip: pb.Clip) -> str:
        """Say what is wrong with a clip, empty for nothing."""
        if not clip.id or len(clip.id) > 200:
            return "a clip has an id of 1 to 200 characters"
        if not clip.wave or len(clip.wave) % 2:
            return f"clip {clip.id}: a wave is int16, and this has {len(clip.wave)} bytes"
        if len(clip.wave) > self.wave_bytes:
            return f"clip {clip.id}: a wave has at most {self.wave_bytes} bytes here, and this has {len(clip.wave)}"
        if hashlib.sha256(clip.wave).digest() != clip.sha256:
            return f"clip {clip.id}: its wave changed on the way"
        return ""

    def _work(self, parts: PartRunners) -> None:
        while True:
            clip, flight = self._todo.get()
            if flight.over:
                continue
            try:
                said: pb.Result | Refusal = self._encoded(parts, clip)
            except Exception as error:
                traceback.print_exc()  # for whoever looks at the board; the host gets a line
                said = Refusal(grpc.StatusCode.INTERNAL, f"clip {clip.id}: {one_line(error)}")
            flight.due.pop(clip.id, None)
            flight.done.put(said)
            del clip, flight, said  # while it waits for the next

    def _encoded(self, parts: PartRunners, clip: pb.Clip) -> pb.Result:
        # What nightjar/device/session.py does for a harvest, without the disk.
        wave = np.frombuffer(clip.wave, "<i2").astype(np.float32) / 32768.0
        encoded = self._family.encode(parts, self._family.features(wave, self.model), self.model)
        result = pb.Result(id=clip.id, audio_s=round(len(wave) / 16000, 4))
        for name, shape in self.outputs.items():
            tensor = encoded[name][0].astype("<f2")
            if tensor.shape != shape:
                raise ValueError(f"the encoder gave {name} {tensor.shape}, and model.json says {shape}")
            data = tensor.tobytes()
            result.tensors.add(name=name, shape=shape, data=data, sha256=hashlib.sha256(data).digest())
        return result


class Service:
    """Answer hosts."""

    def __init__(self, encoders: EncoderPool, token: str | None, in_flight: int, deadline_s: float, lock: str) -> None:
        self.encoders, self._token, self._lock = encoders, token, lock
        self.in_flight, self.deadline_s = in_flight, deadline_s

    def describe(self, question: pb.Question, context: grpc.ServicerContext) -> pb.Description:
        """Say what is served."""
        self._admit(context)
        return pb.Description(
            binary=self.encoders.binary,
            facts=json.dumps(self.encoders.facts(list(question.runtimes)[:20])),
            in_flight=self.in_flight,
            wave_bytes=self.encoders.wave_bytes,
        )

    def encode(self, clips: Iterator[pb.Clip], context: grpc.ServicerContext) -> Iterator[pb.Result]:
        """Yield the result of each clip as it ends."""
        self._admit(context)
        self._hold(context)
        flight = ClipStream(self.in_flight)
        if not context.add_callback(flight.end):
            return
        threading.Thread(target=self._read, args=(clips, flight), daemon=True).start()
        sent, total = 0, -1
        while sent != total:
            if late := flight.late():
                context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED, f"clip {late} was not done by its deadline: the runtime hangs"
                )
            try:
                said = flight.done.get(timeout=0.2)
            except queue.Empty:
                continue
            if said is None:
                return
            if isinstance(said, Ended):
                total = said.clips
                continue
            if isinstance(said, Refusal):
                context.abort(said.code, said.words)
                return  # abort has raised, which mypy cannot know
            yield said
            del said
            sent += 1
            flight.slots.release()  # only now has the transport taken the result

    def _read(self, clips: Iterator[pb.Clip], flight: ClipStream) -> None:
        count = 0
        with contextlib.suppress(Exception):  # the host is gone, and the stream with it
            while True:
                flight.slots.acquire()
                clip = None if flight.over else next(clips, None)
                if clip is None:
                    break
                if problem := self.encoders.problem(clip):
                    flight.done.put(Refusal(grpc.StatusCode.INVALID_ARGUMENT, problem))
                    return
                count += 1
                flight.due[clip.id] = time.monotonic() + min(clip.deadline_s or self.deadline_s, self.deadline_s)
                self.encoders.take(clip, flight)
            flight.done.put(Ended(count))

    def _admit(self, context: grpc.ServicerContext) -> None:
        given = dict(context.invocation_metadata()).get(TOKEN_KEY, "")
        if self._token is not None and not hmac.compare_digest(str(given).encode(), self._token.encode()):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")

    def _hold(self, context: grpc.ServicerContext) -> None:
        """Hold the board's lock as long as the stream lasts, as a session by ssh does."""
        try:
            lock = lock_file(self._lock)
        except OSError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"cannot open the lock {self._lock} ({error.strerror})")
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            context.abort(grpc.StatusCode.ABORTED, holder_of(self._lock))
        os.ftruncate(lock, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        os.pwrite(lock, f"the board service on {socket.gethostname()} for {context.peer()}, since {since}".encode(), 0)
        if not context.add_callback(lambda: os.close(lock)):
            os.close(lock)


def started(
    encoders: EncoderPool, door: Endpoint, in_flight: int, deadline_s: float, lock: str
) -> tuple[grpc.Server, int]:
    """Start to serve; return the server and its port. Raises Broken where the address is taken."""
    service = Service(encoders, door.token, in_flight, deadline_s, lock)
    options = [
        ("grpc.max_receive_message_length", encoders.wave_bytes + SLACK_BYTES),
        ("grpc.max_send_message_length", encoders.result_bytes + SLACK_BYTES),
        ("grpc.so_reuseport", 0),  # or a second server would take half of the hosts
    ]
    pool = ThreadPoolExecutor(max_workers=8)
    server = grpc.server(pool, options=[*KEEPALIVE, *PERMITTED, *options], maximum_concurrent_rpcs=8)
    methods = {
        "Describe": grpc.unary_unary_rpc_method_handler(
            service.describe, pb.Question.FromString, pb.Description.SerializeToString
        ),
        "Encode": grpc.stream_stream_rpc_method_handler(
            service.encode, pb.Clip.FromString, pb.Result.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    try:
        if door.tls is None:
            port = server.add_insecure_port(door.address)
        else:
            credentials = grpc.ssl_server_credentials([door.tls], door.client_ca, door.client_ca is not None)
            port = server.add_secure_port(door.address, credentials)
    except RuntimeError as error:
        raise Broken(
            f"cannot listen on {door.address}: another program does, or it is no address of this machine; "
            "give another --listen"
        ) from error
    server.start()
    return server, port


def one_line(error: Exception) -> str:
    """Say in one line what an exception says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
