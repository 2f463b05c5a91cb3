from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Question(_message.Message):
    __slots__ = ("runtimes",)
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    runtimes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, runtimes: _Optional[_Iterable[str]] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("binary", "facts", "in_flight", "wave_bytes")
    BINARY_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    WAVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    binary: str
    facts: str
    in_flight: int
    wave_bytes: int
    def __init__(self, binary: _Optional[str] = ..., facts: _Optional[str] = ..., in_flight: _Optional[int] = ..., wave_bytes: _Optional[int] = ...) -> None: ...

class Clip(_message.Message):
    __slots__ = ("id", "wave", "sha256", "deadline_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    WAVE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    wave: bytes
    sha256: bytes
    deadline_s: float
    def __init__(self, id: _Optional[str] = ..., wave: _Optional[bytes] = ..., sha256: _Optional[bytes] = ..., deadline_s: _Optional[float] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "shape", "data", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    sha256: bytes
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("id", "tensors", "audio_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    AUDIO_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    audio_s: float
    def __init__(self, id: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., audio_s: _Optional[float] = ...) -> None: ...
