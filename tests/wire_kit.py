"""Frames written by hand, as their layout is documented and without the code that is tested."""

from __future__ import annotations

import json
import struct
import zlib
from itertools import chain, repeat

import numpy as np

from resilient_ai._workers.wire import Decoder, Kind

HEADER_SIZE = 28


def header(
    meta=2, payload=0, *, magic=b"RAIW", version=2, kind=Kind.RUN, reserved=0, request=7, crc=None
) -> bytes:
    """A header with a right checksum, unless another one is given."""
    fields = struct.pack("!4sBBHQII", magic, version, kind, reserved, request, meta, payload)
    return fields + struct.pack("!I", zlib.crc32(fields) if crc is None else crc)


def raw_frame(meta=None, payload=b"", *, declared=None, **fields) -> bytes:
    """A frame of a meta that is JSON, or bytes as they are; `declared` is the payload's size if it lies."""
    text = meta if isinstance(meta, bytes) else json.dumps({} if meta is None else meta).encode()
    size = len(payload) if declared is None else declared
    head = header(len(text), size, **fields)
    return head + text + payload + head[-4:]


def decode(data, pieces=None, *, decoder=None):
    """The frames in a stream that arrives in pieces of these sizes, then in whole."""
    decoder = decoder or Decoder()
    sizes = chain(pieces or (), repeat(len(data) or 1))
    frames = []
    while data:
        piece, data = data[: (size := next(sizes))], data[size:]
        while piece:
            wanted = decoder.wanted()
            assert len(wanted) > 0
            taken = min(len(wanted), len(piece))
            wanted[:taken] = piece[:taken]
            piece = piece[taken:]
            if (frame := decoder.advance(taken)) is not None:
                frames.append(frame)
    return frames


def assert_same(frame, other):
    """Two frames say the same, to the byte, the type and the shape."""
    assert (frame.kind, frame.id) == (other.kind, other.id)
    # As JSON, where a NaN is as good as another and a tuple is a list.
    assert json.dumps(dict(frame.meta)) == json.dumps(dict(other.meta))
    assert list(frame.arrays) == list(other.arrays)
    for name, array in frame.arrays.items():
        assert (array.dtype, array.shape) == (other.arrays[name].dtype, other.arrays[name].shape)
        assert array.tobytes() == other.arrays[name].tobytes()


class CountedMemory:
    """Memory for arrays that counts what was asked for."""

    def __init__(self):
        self.taken = []

    def __call__(self, shape, dtype):
        array = np.empty(shape, dtype)
        self.taken.append(array)
        return array
