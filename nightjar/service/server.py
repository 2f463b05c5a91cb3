"""The board's end of the service: one stream of clips at a time; clips run in parallel, results go out as they end.

Memory is bounded by `in_flight`: a clip takes a slot before it is read, and frees it when the transport has taken its
result. When a host stops reading, sending stops, then reading, then computing.
"""

from __future__ import annotations  # boards have older Pythons

import contextlib
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

from nightjar.device.agent import holder_of, open_lock, try_lock
from nightjar.device.health import facts
from nightjar.device.part_runners import PartRunners
from nightjar.errors import BadOptions, Broken, SessionFailed
from nightjar.service import service_pb2 as pb
from nightjar.service.protocol import KEEPALIVE, SERVICE, SLACK_BYTES, TOKEN_KEY, Endpoint, binary_digest


class Refusal(NamedTuple):
    """Why a stream ends early: a status and one line."""

    code: Any
    message: str


class ClipStream:
    """The clips of one stream between their arrival and the sending of their results."""

    def __init__(self, limit: int) -> None:
        self.slots = threading.Semaphore(limit)
        self.done: queue.SimpleQueue[pb.Result | Refusal | None] = queue.SimpleQueue()
        self.due: dict[str, float] = {}  # clip id -> deadline, monotonic seconds
        self.clips: int | None = None  # how many there were, once the host has sent its last
        self.over = False

    def end(self) -> None:
        """Wake the waiting threads; the host is gone or has all results."""
        self.over = True
        self.slots.release()
        self.done.put(None)

    def late(self) -> str:
        """Name a clip that is beyond its deadline, empty for none."""
        now = time.monotonic()
        return next((name for name, due in list(self.due.items()) if due < now), "")


class EncoderPool:
    """One loaded encoder per worker; a worker is a thread that takes clips of any stream."""

    def __init__(self, folder: Path, workers: int) -> None:
        try:
            self.model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            described = json.loads((folder / "binary.json").read_text(encoding="utf-8"))
            entry, target = described["parts"]["encoder"], Path(described["target"]).name
            shapes = {out["name"]: tuple(out["shape"][1:]) for out in self.model["parts"]["encoder"]["outputs"]}
            if "chunk" in self.model:
                raise ValueError("it is a streaming model, and a service takes whole windows")
            self.outputs = {name: shapes[name] for name in self.model["harvest"]}
            self.wave_bytes = int(self.model["recipe"]["window_s"] * 16000) * 2
            self.binary = binary_digest(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadOptions(
                f"{folder} is not a binary to serve ({one_line(error)}): give a folder that build wrote"
            ) from error
        preflight = Path(__file__).parents[2] / "targets" / target / "preflight.py"
        self.probe = preflight.read_text(encoding="utf-8") if preflight.is_file() else ""
        self.result_bytes = sum(2 * int(np.prod(shape)) for shape in self.outputs.values())
        try:
            self._family = importlib.import_module(f"models.{self.model['family']}.decode")
            pool = [PartRunners(folder, {"encoder": entry}) for _ in range(workers)]
        except Exception as error:  # a vendor's runtime raises any class
            raise SessionFailed(
                f"the encoder in {folder} does not load ({one_line(error)}): look at the file and its runtime"
            ) from error
        self.todo: queue.SimpleQueue[tuple[pb.Clip, ClipStream]] = queue.SimpleQueue()
        for parts in pool:
            # Daemon threads: a hung runtime must not keep the process alive.
            threading.Thread(target=self._work, args=(parts,), daemon=True).start()

    def problem(self, clip: pb.Clip) -> str:
        """Describe what is wrong with a clip, empty for nothing."""
        if not clip.id or len(clip.id) > 200:
            return "a clip has an id of 1 to 200 characters"
        if not clip.wave or len(clip.wave) % 2:
            return f"clip {clip.id}: a wave is int16, and this has {len(clip.wave)} bytes"
        if len(clip.wave) > self.wave_bytes:
            return f"clip {clip.id}: a wave has at most {self.wave_bytes} bytes here, and this has {len(clip.wave)}"
        if hashlib.sha256(clip.wave).digest() != clip.sha256:
            return f"clip {clip.id}: its wave changed in transit"
        return ""

    def _work(self, parts: PartRunners) -> None:
        while True:
            clip, stream = self.todo.get()
            if stream.over:
                continue
            try:
                result: pb.Result | Refusal = self._encode(parts, clip)
            except Exception as error:
                traceback.print_exc()  # for a person at the board; the host gets one line
                result = Refusal(grpc.StatusCode.INTERNAL, f"clip {clip.id}: {one_line(error)}")
            stream.due.pop(clip.id, None)
            stream.done.put(result)
            del clip, stream, result  # or they would stay in memory while it waits

    def _encode(self, parts: PartRunners, clip: pb.Clip) -> pb.Result:
        # As nightjar/device/session.py for a harvest, without the disk.
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
    """Answer requests of hosts."""

    def __init__(self, encoders: EncoderPool, token: str | None, in_flight: int, deadline_s: float, lock: str) -> None:
        self.encoders, self._token, self._lock = encoders, token, lock
        self.in_flight, self.deadline_s = in_flight, deadline_s

    def describe(self, question: pb.Question, context: grpc.ServicerContext) -> pb.Description:
        """Return what is served."""
        self._check_token(context)
        return pb.Description(
            binary=self.encoders.binary,
            facts=json.dumps(facts(sorted({"numpy", *question.runtimes[:20]}), self.encoders.probe)),
            in_flight=self.in_flight,
            wave_bytes=self.encoders.wave_bytes,
        )

    def encode(self, clips: Iterator[pb.Clip], context: grpc.ServicerContext) -> Iterator[pb.Result]:
        """Yield the result of each clip as it ends."""
        self._check_token(context)
        self._lock_board(context)
        stream = ClipStream(self.in_flight)
        if not context.add_callback(stream.end):
            return
        threading.Thread(target=self._read, args=(clips, stream), daemon=True).start()
        sent = 0
        while sent != stream.clips:
            if late := stream.late():
                context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED, f"clip {late} was not done by its deadline: the runtime hangs"
                )
            try:
                result = stream.done.get(timeout=0.2)
            except queue.Empty:
                continue
            if result is None:
                return
            if isinstance(result, Refusal):
                context.abort(result.code, result.message)
                return  # abort raises, which mypy cannot know
            yield result
            del result
            sent += 1
            stream.slots.release()  # only now has the transport taken the result

    def _read(self, clips: Iterator[pb.Clip], stream: ClipStream) -> None:
        count = 0
        with contextlib.suppress(Exception):  # the host is gone, and the stream with it
            while True:
                stream.slots.acquire()
                clip = None if stream.over else next(clips, None)
                if clip is None:
                    break
                if problem := self.encoders.problem(clip):
                    stream.done.put(Refusal(grpc.StatusCode.INVALID_ARGUMENT, problem))
                    return
                count += 1
                stream.due[clip.id] = time.monotonic() + min(clip.deadline_s or self.deadline_s, self.deadline_s)
                self.encoders.todo.put((clip, stream))
            stream.clips = count

    def _check_token(self, context: grpc.ServicerContext) -> None:
        token = dict(context.invocation_metadata()).get(TOKEN_KEY, "")
        if self._token is not None and not hmac.compare_digest(str(token).encode(), self._token.encode()):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")

    def _lock_board(self, context: grpc.ServicerContext) -> None:
        """Lock the board for as long as the stream lasts, as a session by ssh does."""
        try:
            lock = open_lock(self._lock)
        except OSError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"cannot open the lock {self._lock} ({error.strerror})")
            return
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        holder = f"the board service on {socket.gethostname()} for {context.peer()}, since {since}"
        if not try_lock(lock, holder):
            os.close(lock)
            context.abort(grpc.StatusCode.ABORTED, holder_of(self._lock))
        if not context.add_callback(lambda: os.close(lock)):
            os.close(lock)


def start_server(
    encoders: EncoderPool, endpoint: Endpoint, in_flight: int, deadline_s: float, lock: str
) -> tuple[grpc.Server, int]:
    """Start to serve; return the server and its port. Raises Broken where the address is in use."""
    service = Service(encoders, endpoint.token, in_flight, deadline_s, lock)
    options = [
        *KEEPALIVE,
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_receive_message_length", encoders.wave_bytes + SLACK_BYTES),
        ("grpc.max_send_message_length", encoders.result_bytes + SLACK_BYTES),
        ("grpc.so_reuseport", 0),  # or a second server would get half of the hosts
    ]
    server = grpc.server(ThreadPoolExecutor(max_workers=8), options=options, maximum_concurrent_rpcs=8)
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
        if endpoint.credentials is None:
            port = server.add_insecure_port(endpoint.address)
        else:
            port = server.add_secure_port(endpoint.address, endpoint.credentials)
    except RuntimeError as error:
        raise Broken(
            f"cannot listen on {endpoint.address}: it is in use, or not an address of this machine; "
            "give another --listen"
        ) from error
    server.start()
    return server, port


def one_line(error: Exception) -> str:
    """Format an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
