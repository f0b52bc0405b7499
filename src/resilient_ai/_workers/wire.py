"""The frames that a host and its worker exchange: bytes in, frames out, and back; no I/O.

::

    header, 28 bytes                                  meta                    arrays                 seal
    magic  version kind  0   id   meta   payload crc  JSON object             raw bytes, one after   crc
    4s     u8      u8    u16 u64  u32    u32     u32  with "arrays", if any   another, no padding    u32

All integers are big-endian; arrays are little-endian. Nothing is pickled: a frame from a worker
that runs amok is at worst refused. `crc` is the CRC-32 of the header before it, and stands at the
end once more: were bytes missing, those of the next frame would pass for the last numbers of this one.
"""

from __future__ import annotations

import json
import math
import reprlib
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resilient_ai._resilience.failures import Diagnosed, FailureClass

__all__ = ["META_LIMIT", "PAYLOAD_LIMIT", "Decoder", "Frame", "Kind", "ProtocolError", "encode"]

MAGIC: Final = b"RAIW"
VERSION: Final = 2
META_LIMIT: Final = 1 << 20
PAYLOAD_LIMIT: Final = 1 << 30

_FIELDS: Final = struct.Struct("!4sBBHQII")
_CRC: Final = struct.Struct("!I")
_HEADER_SIZE: Final = _FIELDS.size + _CRC.size
_DTYPES: Final = {dtype: np.dtype(dtype) for dtype in ("<f4", "<f2", "<i8", "<i4", "|u1")}
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` makes one each time
_MOST_ARRAYS: Final = 16
_MOST_SIDES: Final = 4

Allocate = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]
_Layout = tuple[str, np.dtype[Any], tuple[int, ...]]


class ProtocolError(Diagnosed):
    """Raised when the other side says what it may not say; nothing after that can be trusted."""

    failure_class = FailureClass.CORRUPT


class Kind(IntEnum):
    """What a frame is for. Below 16 they go to the worker, from 16 on they come from it."""

    HELLO = 1  # what the worker is to be; the first frame
    LOAD = 2  # a model to load
    RUN = 3  # a batch to run
    UNLOAD = 4  # a model to let go
    REPORT = 5  # how are you?
    STOP = 6  # end

    PHASE = 16  # something takes its time and goes on: resets the limit of what it answers
    READY = 17  # answers HELLO
    LOADED = 18  # answers LOAD
    ANSWER = 19  # answers RUN
    ERROR = 20  # answers anything, instead
    STATE = 21  # answers REPORT
    UNLOADED = 22  # answers UNLOAD


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One message: `id` (64 bits, unsigned) pairs answers with requests, `meta` is JSON.

    `arrays` are float or integer: at most 16, of at most four sides each.
    """

    kind: Kind
    id: int = 0
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=lambda: MappingProxyType({}))


def encode(frame: Frame) -> list[memoryview]:
    """A frame as buffers to send one after another; arrays that are contiguous are not copied.

    Raises:
        ProtocolError: The frame is larger than the other side accepts.
        TypeError: Its meta is not JSON or has "arrays", which is the wire's own; or an array is of
            another type than the wire carries.
    """
    # "C" order first: a memoryview of anything else cannot be cast to bytes. (Not
    # `ascontiguousarray`, which gives an array without sides one.)
    arrays = {name: np.asarray(array, order="C") for name, array in frame.arrays.items()}
    meta = dict(frame.meta)
    if "arrays" in meta:
        raise TypeError('the meta of a frame must not have "arrays": that is where the wire lists them')
    if arrays:
        meta["arrays"] = [_describe(name, array) for name, array in arrays.items()]
        _check_count(len(arrays))
    text = _to_json(meta).encode()
    payload = sum(array.nbytes for array in arrays.values())
    _check_limits(len(text), payload)
    fields = _FIELDS.pack(MAGIC, VERSION, frame.kind, 0, frame.id, len(text), payload)
    seal = _CRC.pack(zlib.crc32(fields))
    bodies = [array.data.cast("B") for array in arrays.values() if array.nbytes]
    if not bodies:
        return [memoryview(fields + seal + text + seal)]
    return [memoryview(fields + seal + text), *bodies, memoryview(seal)]


class Decoder:
    """Frames out of a stream of bytes. Not thread-safe.

    Fill the buffer that `wanted` gives, from its start and as far as bytes are there, and tell
    `advance` how many that were. Arrays are filled in place, in memory that `allocate` gives.

    After a `ProtocolError` the stream is out of step and the decoder of no use any more.
    """

    def __init__(self, allocate: Allocate = np.empty) -> None:
        self._allocate = allocate
        self._begin()

    @property
    def is_between_frames(self) -> bool:
        """Whether no frame has been begun: only then is the end of the stream an orderly one."""
        return self._step == "header" and self._filled == 0

    def wanted(self) -> memoryview:
        """Where the next bytes belong; never empty, and never more than the frame under way."""
        return self._target[self._filled :]

    def advance(self, count: int) -> Frame | None:
        """Take note of `count` bytes that were filled in; return the frame that they complete, if so.

        Raises:
            ProtocolError: They are no frame, or of a version that is not understood.
        """
        self._filled += count
        while self._filled == len(self._target):
            if self._step == "header":
                self._read_header(bytes(self._target))
            elif self._step == "meta":
                self._read_meta(bytes(self._target))
            elif self._step == "seal":
                return self._finish(bytes(self._target))
            if self._step == "arrays":
                self._aim_at_next()
        return None

    def _begin(self) -> None:
        self._step = "header"
        self._arrays: dict[str, NDArray[Any]] = {}
        self._left: list[NDArray[Any]] = []
        self._aim(memoryview(bytearray(_HEADER_SIZE)))

    def _aim(self, target: memoryview) -> None:
        self._target = target
        self._filled = 0

    def _aim_at_next(self) -> None:
        """Aim at the next array that has bytes, and after the last one at the seal."""
        if self._left:
            self._aim(self._left.pop(0).data.cast("B"))
        else:
            self._step = "seal"
            self._aim(memoryview(bytearray(_CRC.size)))

    def _finish(self, seal: bytes) -> Frame:
        if seal != self._seal:
            raise ProtocolError(f"a frame of {self._payload} bytes of arrays does not end where it should")
        frame = Frame(self._kind, self._id, self._meta, self._arrays)
        self._begin()
        return frame

    def _read_header(self, header: bytes) -> None:
        fields, self._seal = header[: _FIELDS.size], header[_FIELDS.size :]
        if _CRC.unpack(self._seal)[0] != zlib.crc32(fields):
            raise ProtocolError(f"not the header of a frame: {header[:16]!r}")
        magic, version, kind, _, self._id, meta, self._payload = _FIELDS.unpack(fields)
        if magic != MAGIC or version != VERSION:
            raise ProtocolError(f"frames of version {version} of {magic!r}; this side speaks {VERSION}")
        _check_limits(meta, self._payload)
        try:
            self._kind = Kind(kind)
        except ValueError as exc:
            raise ProtocolError(f"a frame of unknown kind {kind}") from exc
        self._step = "meta"
        self._aim(memoryview(bytearray(meta)))

    def _read_meta(self, text: bytes) -> None:
        try:
            meta = json.loads(text.decode())
        except (ValueError, RecursionError) as exc:
            raise ProtocolError(f"the meta of a frame is not JSON: {text[:80]!r}") from exc
        if not isinstance(meta, dict):
            raise ProtocolError(f"the meta of a frame is no object: {text[:80]!r}")
        # Before memory is taken for any of them.
        layouts = _layouts(meta.pop("arrays", []))
        if sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in layouts) != self._payload:
            raise ProtocolError(f"the arrays of a frame do not fill its {self._payload} bytes")
        self._meta = meta
        self._arrays = {name: self._allocate(shape, dtype) for name, dtype, shape in layouts}
        self._left = [array for array in self._arrays.values() if array.nbytes]
        self._step = "arrays"


def _check_limits(meta: int, payload: int) -> None:
    # A meta is "{}" at least, so no target of the decoder is ever empty.
    if not len("{}") <= meta <= META_LIMIT or payload > PAYLOAD_LIMIT:
        raise ProtocolError(
            f"a frame of {meta} bytes of meta and {payload} of arrays; "
            f"allowed are {META_LIMIT} and {PAYLOAD_LIMIT}"
        )


def _check_count(arrays: int) -> None:
    if arrays > _MOST_ARRAYS:
        raise ProtocolError(f"a frame of {arrays} arrays; allowed are {_MOST_ARRAYS}")


def _describe(name: str, array: NDArray[Any]) -> list[object]:
    """The entry of an array in the list of arrays."""
    if array.dtype.str not in _DTYPES:
        raise TypeError(f"array {name!r} of {array.dtype} cannot be sent")
    if array.ndim > _MOST_SIDES:
        raise ProtocolError(f"array {name!r} has {array.ndim} sides; allowed are {_MOST_SIDES}")
    return [name, array.dtype.str, array.shape]


def _layouts(entries: object) -> list[_Layout]:
    """The list of arrays, checked."""
    if not isinstance(entries, list):
        raise ProtocolError("the list of a frame's arrays is no list")
    _check_count(len(entries))
    layouts = [_layout(entry) for entry in entries]
    if len({name for name, _, _ in layouts}) < len(layouts):
        raise ProtocolError("two arrays of a frame have one name")
    return layouts


def _layout(entry: object) -> _Layout:
    """One entry of the list of arrays, checked: name, dtype, shape."""
    # Not by `match`: that takes ten times as long, and this is done for each array of each frame.
    if isinstance(entry, list) and len(entry) == 3:  # noqa: PLR2004 - as many as are named here
        name, code, shape = entry
        if isinstance(name, str) and isinstance(code, str) and code in _DTYPES and _is_shape(shape):
            return name, _DTYPES[code], tuple(shape)
    # Not the entry itself: it may be a megabyte, or nested deeper than `repr` goes.
    raise ProtocolError(f"not an array's name, type and shape: {reprlib.repr(entry)}")


def _is_shape(shape: object) -> bool:
    """Whether numpy makes such arrays; beside a side of 0, too, it refuses large ones."""
    if not isinstance(shape, list) or len(shape) > _MOST_SIDES:
        return False
    span = 1
    for side in shape:
        if type(side) is not int or side < 0:
            return False
        span *= side or 1
    return span <= PAYLOAD_LIMIT
