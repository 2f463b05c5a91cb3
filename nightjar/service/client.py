"""The host's end of the board service: clips out, encoder outputs in; waits for a board that disconnects."""

import hashlib
import logging
import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import grpc
import numpy as np
from pydantic import ValidationError

from nightjar.boards.board import BoardFacts
from nightjar.boards.config import BoardAddress, relative_to_boards_file
from nightjar.dataset.reader import HarvestedClip
from nightjar.errors import BadOptions, BoardMissing, SessionFailed, printable
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

log = logging.getLogger(__name__)

ANSWER_S = 10.0  # for requests that need no runner
RECONNECT_S = 60.0  # a board that disconnected may be starting again
GRACE_S = 30.0  # beyond a clip's deadline, for the board to report it
RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED)
KEPT = "then run the same command again, finished clips are kept"


class ServiceDescription(NamedTuple):
    """What a board service serves."""

    binary: str  # sha256 of the folder's content
    facts: BoardFacts
    in_flight: int
    wave_bytes: int


class ServiceBoard:
    """Use a board by its service; it connects when it is first needed."""

    def __init__(
        self, address: BoardAddress, shapes: Mapping[str, tuple[int, ...]], runtimes: tuple[str, ...] = ()
    ) -> None:
        """shapes: of each tensor that a result has, without the batch axis; raises BadOptions."""
        self.alias, self.address = address.alias, str(address.entry.service)
        self._shapes, self._runtimes = dict(shapes), runtimes
        self._metadata, credentials = _credentials(address)
        expected = sum(2 * math.prod(shape) for shape in shapes.values())
        options = [*KEEPALIVE, ("grpc.max_receive_message_length", expected + SLACK_BYTES)]
        if credentials is None:
            self._channel = grpc.insecure_channel(self.address, options)
        else:
            self._channel = grpc.secure_channel(self.address, credentials, options)

    def __enter__(self) -> "ServiceBoard":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def describe(self) -> ServiceDescription:
        """Return what is served; raises BoardMissing."""
        call = self._channel.unary_unary(
            f"/{SERVICE}/Describe", pb.Question.SerializeToString, pb.Description.FromString
        )
        try:
            answer = call(pb.Question(runtimes=self._runtimes), timeout=ANSWER_S, metadata=self._metadata)
            facts = BoardFacts.model_validate_json(answer.facts)
        except grpc.RpcError as error:
            raise self._explain(error) from error
        except ValidationError as error:
            raise self._not_a_service() from error
        return ServiceDescription(answer.binary, facts, max(1, min(answer.in_flight, 1000)), answer.wave_bytes)

    def encode(
        self,
        clips: Iterable[tuple[str, np.ndarray]],
        deadline_s: float = DEADLINE_S,
        reconnect_s: float = RECONNECT_S,
    ) -> Iterator[HarvestedClip]:
        """Yield the encoder outputs of clips (id, int16 wave), each once, in the order in which they end.

        When the board disconnects, the clips without a result are sent again. Raises SessionFailed when the board stays
        away, passes a clip's deadline, refuses a clip, or sends an invalid result.
        """
        served, source = self.describe(), iter(clips)
        pending: dict[str, pb.Clip] = {}  # without a result yet, in order
        received_at, warned = time.monotonic(), False
        while True:
            try:
                for encoded in self._stream(source, pending, served.in_flight * 2, deadline_s):
                    yield encoded
                    received_at, warned = time.monotonic(), False
                return
            except grpc.RpcError as error:
                locked = error.code() == grpc.StatusCode.ABORTED
                if error.code() not in RETRIED or (not locked and time.monotonic() - received_at > reconnect_s):
                    raise self._explain(error, deadline_s) from error
                if not warned:
                    owner = printable(error.details() or "an unknown process")
                    log.warning(
                        "board %s %s; waiting", self.alias, f"is locked by {owner}" if locked else "disconnected"
                    )
                    warned = True
            time.sleep(0.5)
            self._check_unchanged(served)

    def _check_unchanged(self, served: ServiceDescription) -> None:
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
        self, source: Iterator[tuple[str, np.ndarray]], pending: dict[str, pb.Clip], limit: int, deadline_s: float
    ) -> Iterator[HarvestedClip]:
        """Run one stream to its end; when it breaks, the clips without a result stay in `pending`."""
        outbox: queue.SimpleQueue[pb.Clip | None] = queue.SimpleQueue()
        for clip in pending.values():
            outbox.put(clip)

        def send_more() -> None:
            while len(pending) < limit and (following := next(source, None)) is not None:
                name, wave = following
                data = wave.astype("<i2", copy=False).tobytes()
                pending[name] = pb.Clip(id=name, wave=data, sha256=hashlib.sha256(data).digest(), deadline_s=deadline_s)
                outbox.put(pending[name])

        send_more()
        call = self._channel.stream_stream(f"/{SERVICE}/Encode", pb.Clip.SerializeToString, pb.Result.FromString)(
            iter(outbox.get, None), metadata=self._metadata
        )
        try:
            while pending:
                result = _next_result(call, deadline_s + GRACE_S)
                if result is None:
                    raise SessionFailed(
                        f"board {self.alias} gave no result for {next(iter(pending))}; run the same command again"
                    )
                encoded = self._check(result, pending)
                del pending[encoded.id]
                send_more()
                yield encoded
        finally:
            outbox.put(None)
            call.cancel()

    def _check(self, result: pb.Result, pending: Mapping[str, pb.Clip]) -> HarvestedClip:
        """Convert a result; the board is not trusted."""
        if result.id not in pending:
            raise SessionFailed(
                f"result for an unknown clip id {result.id[:100]!r} from board {self.alias}; check what runs there"
            )
        shapes = {tensor.name: tuple(tensor.shape) for tensor in result.tensors}
        if shapes != self._shapes or any(len(each.data) != 2 * math.prod(each.shape) for each in result.tensors):
            given = printable(", ".join(f"{name} {shape}" for name, shape in shapes.items())) or "nothing"
            raise SessionFailed(
                f"board {self.alias} gave {given} for {result.id}, and the binary's model.json has {self._shapes}; "
                "serve a folder that build wrote"
            )
        if any(hashlib.sha256(each.data).digest() != each.sha256 for each in result.tensors):
            raise SessionFailed(f"the tensors of {result.id} changed in transit; run the same command again")
        tensors = {each.name: np.frombuffer(each.data, "<f2").reshape(shapes[each.name]) for each in result.tensors}
        return HarvestedClip(result.id, result.audio_s, pending[result.id].sha256.hex(), tensors)

    def _not_a_service(self) -> BoardMissing:
        return BoardMissing(
            f"no board service answers for board {self.alias} at {self.address}: correct its service in boards.toml"
        )

    def _explain(self, error: grpc.RpcError, deadline_s: float | None = None) -> SessionFailed | BoardMissing:
        """deadline_s: of a clip; None for a request without clips."""
        code, reason = error.code(), printable(error.details() or "")[:300] or error.code().name
        if code == grpc.StatusCode.UNAUTHENTICATED:
            return BoardMissing(
                f"the service of board {self.alias} rejects the token: give as service_token in boards.toml the "
                "file that it was started with as --token-file"
            )
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return self._not_a_service()
        if deadline_s is None:
            return BoardMissing(
                f"no service of board {self.alias} at {self.address} ({reason}): on the board, `nightjar board serve "
                "--binary …`, and look at ports, certificates and `ssh -L`"
            )
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            problem = f"board {self.alias} took longer than {deadline_s:g} s for a clip ({reason}); restart its service"
        elif code in RETRIED:
            problem = f"board {self.alias} disconnected and did not come back ({reason}); restart its service"
        else:
            problem = f"the service of board {self.alias} refused: {reason}; correct that"
        return SessionFailed(f"{problem}, {KEPT}")


def _next_result(call: Any, silence_s: float) -> pb.Result | None:
    """Return a stream's next result, None at its end; raises SessionFailed when none comes for `silence_s`."""
    timer = threading.Timer(silence_s, call.cancel)
    timer.daemon = True
    timer.start()
    try:
        result: pb.Result | None = next(call, None)
        return result
    except grpc.RpcError as error:
        if call.cancelled():  # by the timer
            raise SessionFailed(f"no result from the board service for {silence_s:g} s; restart it, {KEPT}") from error
        raise
    finally:
        timer.cancel()


def _credentials(address: BoardAddress) -> tuple[tuple[tuple[str, str], ...], Any]:
    """Return the metadata and channel credentials for a board's service, None for no TLS; raises BadOptions."""
    entry, alias = address.entry, address.alias
    ca, cert, key, token = (
        relative_to_boards_file(path) if path else None
        for path in (entry.service_ca, entry.service_cert, entry.service_key, entry.service_token)
    )
    host, _ = split_address(str(entry.service))
    if ca is None and not is_loopback(host):
        raise BadOptions(
            f"the service of board {alias} is on another machine, {entry.service}: give its certificate or authority "
            "as service_ca in boards.toml, or use `ssh -L` and localhost"
        )
    if (cert is None) != (key is None) or (cert is not None and ca is None):
        raise BadOptions(f"board {alias}: service_cert needs service_key and service_ca, all three in boards.toml")
    metadata = ((TOKEN_KEY, read_token(token)),) if token else ()
    if ca is None:
        return metadata, None
    pair = (read_secret(key, "key"), read_file(cert, "certificate")) if key and cert else (None, None)
    return metadata, grpc.ssl_channel_credentials(read_file(ca, "authority"), *pair)
