"""The host's end of the board service: clips out, encoder outputs in; a board that goes away is waited for."""

import hashlib
import json
import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import grpc
import numpy as np
from pydantic import ValidationError

from nightjar.boards.board import BoardFacts
from nightjar.boards.config import BoardAddress, beside
from nightjar.dataset.reader import EncodedClip
from nightjar.errors import BadOptions, BoardMissing, SessionFailed
from nightjar.service import service_pb2 as pb
from nightjar.service.protocol import (
    DEADLINE_S,
    KEEPALIVE,
    SERVICE,
    SLACK_BYTES,
    TOKEN_KEY,
    is_loopback,
    read_file,
    read_secret,
    read_token,
    split_address,
)
from nightjar.text import printable

log = logging.getLogger(__name__)

ANSWER_S = 10.0  # for what needs no runner
RECONNECT_S = 60.0  # with a board that went away in the middle: it may be starting again
GRACE_S = 30.0  # beyond a clip's deadline, for the board to say itself that it passed
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED)


class ServiceDescription(NamedTuple):
    """What a board service says of itself."""

    binary: str  # sha256 of the folder's content
    facts: BoardFacts
    in_flight: int
    wave_bytes: int


class ServiceBoard:
    """Use a board by its service; nothing is connected before it is needed."""

    def __init__(
        self, reach: BoardAddress, shapes: Mapping[str, tuple[int, ...]], runtimes: tuple[str, ...] = ()
    ) -> None:
        """shapes: of each tensor that a result has, without the batch axis; raises BadOptions."""
        self.alias, self.address = reach.alias, str(reach.entry.service)
        self._shapes, self._runtimes = dict(shapes), runtimes
        self._metadata, credentials = _credentials(reach)
        expected = sum(2 * int(np.prod(shape)) for shape in shapes.values())
        options = [*KEEPALIVE, ("grpc.max_receive_message_length", expected + SLACK_BYTES)]
        if credentials is None:
            self._channel = grpc.insecure_channel(self.address, options)
        else:
            self._channel = grpc.secure_channel(self.address, credentials, options)

    def __enter__(self) -> "ServiceBoard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def describe(self) -> ServiceDescription:
        """Ask what is served; raises BoardMissing."""
        ask = self._channel.unary_unary(
            f"/{SERVICE}/Describe", pb.Question.SerializeToString, pb.Description.FromString
        )
        try:
            said = ask(pb.Question(runtimes=self._runtimes), timeout=ANSWER_S, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._missing(error) from error
        try:
            facts = BoardFacts.model_validate(json.loads(said.facts))
        except (ValueError, ValidationError) as error:
            raise BoardMissing(
                f"what answers for board {self.alias} at {self.address} is no board service: correct its service in "
                "boards.toml"
            ) from error
        return ServiceDescription(said.binary, facts, max(1, min(said.in_flight, 1000)), said.wave_bytes)

    def encode(
        self,
        clips: Iterable[tuple[str, np.ndarray]],
        deadline_s: float = DEADLINE_S,
        reconnect_s: float = RECONNECT_S,
    ) -> Iterator[EncodedClip]:
        """Yield what the encoder makes of clips (id, int16 wave), as they end, each once.

        A board that goes away is waited for, and the clips that it still owed are sent again. Raises SessionFailed when
        it stays away, passes a clip's deadline, refuses a clip, or says what it cannot.
        """
        served, source = self.describe(), iter(clips)
        owed: dict[str, pb.Clip] = {}  # sent or about to be, in order; no result yet
        heard, told = time.monotonic(), False
        while True:
            try:
                for result in self._stream(source, owed, served.in_flight * 2, deadline_s):
                    yield result
                    heard, told = time.monotonic(), False
                return
            except grpc.RpcError as error:
                held = error.code() == grpc.StatusCode.ABORTED
                if error.code() not in AGAIN or (not held and time.monotonic() - heard > reconnect_s):
                    raise self._failed(error, deadline_s) from error
                if not told:
                    why = f"is held by {printable(error.details() or 'somebody')}" if held else "went away"
                    log.warning("board %s %s; waiting", self.alias, why)
                    told = True
            time.sleep(0.5)
            self._check_still(served)

    def _check_still(self, served: ServiceDescription) -> None:
        try:
            now = self.describe()
        except BoardMissing as error:
            log.debug("board %s: %s", self.alias, error)  # not yet
            return
        if (now.binary, now.facts) != (served.binary, served.facts):
            raise SessionFailed(
                f"board {self.alias} came back with another binary or runtime; run the same command again"
            )

    def _stream(
        self, source: Iterator[tuple[str, np.ndarray]], owed: dict[str, pb.Clip], limit: int, deadline_s: float
    ) -> Iterator[EncodedClip]:
        """Run one stream to its end; what it owes when it breaks stays in `owed`."""
        outbox: queue.SimpleQueue[pb.Clip | None] = queue.SimpleQueue()
        for clip in owed.values():
            outbox.put(clip)
        exhausted = not self._filled(outbox, source, owed, limit, deadline_s)
        call = self._channel.stream_stream(f"/{SERVICE}/Encode", pb.Clip.SerializeToString, pb.Result.FromString)(
            iter(outbox.get, None), metadata=self._metadata
        )
        with _Watch(call, deadline_s + GRACE_S) as watch:
            try:
                while owed:
                    result = watch.next()
                    if result is None:
                        raise SessionFailed(
                            f"board {self.alias} gave no result for {next(iter(owed))}; run the same command again"
                        )
                    encoded = self._checked(result, owed)
                    del owed[encoded.id]
                    if not exhausted:
                        exhausted = not self._filled(outbox, source, owed, limit, deadline_s)
                    yield encoded
            finally:
                outbox.put(None)
                call.cancel()

    def _filled(
        self,
        outbox: "queue.SimpleQueue[pb.Clip | None]",
        source: Iterator[tuple[str, np.ndarray]],
        owed: dict[str, pb.Clip],
        limit: int,
        deadline_s: float,
    ) -> bool:
        """Take clips until `limit` are owed; tell whether there are more."""
        while len(owed) < limit:
            if (taken := next(source, None)) is None:
                return False
            name, wave = taken
            data = wave.astype("<i2", copy=False).tobytes()
            clip = pb.Clip(id=name, wave=data, sha256=hashlib.sha256(data).digest(), deadline_s=deadline_s)
            owed[name] = clip
            outbox.put(clip)
        return True

    def _checked(self, result: pb.Result, owed: Mapping[str, pb.Clip]) -> EncodedClip:
        """Read a result; a board may say anything."""
        if result.id not in owed:
            raise SessionFailed(
                f"board {self.alias} gave a result of no clip of ours, {result.id[:100]!r}; look at what runs there"
            )
        tensors = {}
        for tensor in result.tensors:
            shape = self._shapes.get(tensor.name)
            if shape is None or tuple(tensor.shape) != shape or len(tensor.data) != 2 * int(np.prod(shape)):
                raise SessionFailed(
                    f"board {self.alias} gave {tensor.name[:100]!r} {tuple(tensor.shape)} for {result.id}, and the "
                    f"binary's model.json has {self._shapes}; serve what build wrote"
                )
            if hashlib.sha256(tensor.data).digest() != tensor.sha256:
                raise SessionFailed(f"the tensors of {result.id} changed on the way; run the same command again")
            tensors[tensor.name] = np.frombuffer(tensor.data, "<f2").reshape(shape)
        if tensors.keys() != self._shapes.keys():
            raise SessionFailed(
                f"board {self.alias} gave {', '.join(tensors) or 'nothing'} for {result.id} and not "
                f"{', '.join(self._shapes)}; serve what build wrote"
            )
        return EncodedClip(result.id, result.audio_s, owed[result.id].sha256.hex(), tensors)

    def _missing(self, error: grpc.RpcError) -> BoardMissing:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return BoardMissing(
                f"the service of board {self.alias} does not take our token: give as service_token in boards.toml the "
                "file that it was started with as --token-file"
            )
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            return BoardMissing(
                f"what answers for board {self.alias} at {self.address} is no board service: correct its service in "
                "boards.toml"
            )
        reason = printable(error.details() or "")[:200] or error.code().name
        return BoardMissing(
            f"no service of board {self.alias} at {self.address} ({reason}): on the board, `nightjar board serve "
            "--binary …`, and look at ports, certificates and `ssh -L`"
        )

    def _failed(self, error: grpc.RpcError, deadline_s: float) -> SessionFailed | BoardMissing:
        words = printable(error.details() or "")[:300] or error.code().name
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED):
            return self._missing(error)
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            return SessionFailed(
                f"board {self.alias} took longer than {deadline_s:g} s for a clip ({words}); start its service again, "
                "then run the same command again, finished clips are kept"
            )
        if error.code() in AGAIN:
            return SessionFailed(
                f"board {self.alias} went away and did not come back ({words}); start its service again, then run the "
                "same command again, finished clips are kept"
            )
        return SessionFailed(
            f"the service of board {self.alias} refused: {words}; finished clips are kept, mend it and run the same "
            "command again"
        )


class _Watch:
    """Read a stream, and cancel it when we have waited `silence_s` for a result; how long we work does not count."""

    def __init__(self, call: Any, silence_s: float) -> None:
        self._call, self._silence_s = call, silence_s
        self._waiting_since: float | None = None
        self._hung = False
        self._ended = threading.Event()

    def __enter__(self) -> "_Watch":
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def next(self) -> pb.Result | None:
        """Return the next result, None at the stream's end."""
        self._waiting_since = time.monotonic()
        try:
            result: pb.Result | None = next(self._call, None)
        except grpc.RpcError as error:
            if self._hung:
                raise SessionFailed(
                    f"the board service said nothing for {self._silence_s:g} s; start it again, then run the same "
                    "command again, finished clips are kept"
                ) from error
            raise
        finally:
            self._waiting_since = None
        return result

    def _look(self) -> None:
        while not self._ended.wait(min(1.0, self._silence_s / 4)):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > self._silence_s:
                self._hung = True
                self._call.cancel()


def _credentials(reach: BoardAddress) -> tuple[tuple[tuple[str, str], ...], Any]:
    """Return the metadata and channel credentials for a board's service, None for no TLS; raises BadOptions."""
    entry = reach.entry
    ca, cert, key, token = (
        beside(path) if path else None
        for path in (entry.service_ca, entry.service_cert, entry.service_key, entry.service_token)
    )
    host, _ = split_address(str(entry.service))
    if ca is None and not is_loopback(host):
        raise BadOptions(
            f"the service of board {reach.alias} is on another machine, {entry.service}: give its certificate or "
            "authority as service_ca in boards.toml, or come by `ssh -L` and localhost"
        )
    if (cert is None) != (key is None) or (cert is not None and ca is None):
        raise BadOptions(
            f"board {reach.alias}: service_cert goes with service_key and service_ca, all three in boards.toml"
        )
    metadata = ((TOKEN_KEY, read_token(token)),) if token else ()
    if ca is None:
        return metadata, None
    pair = (read_secret(key, "key"), read_file(cert, "certificate")) if key and cert else (None, None)
    return metadata, grpc.ssl_channel_credentials(read_file(ca, "authority"), *pair)
