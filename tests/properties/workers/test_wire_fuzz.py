"""What holds for every stream: frames arrive as sent, and nothing else does harm.

The only error is `ProtocolError`, and memory is taken only for arrays whose sizes were checked.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from resilient_ai._workers import messages
from resilient_ai._workers.wire import PAYLOAD_LIMIT, Decoder, Frame, Kind, ProtocolError, encode
from resilient_ai.errors import ResilientAIError
from wire_kit import HEADER_SIZE, assert_same, decode, raw_frame

pytestmark = pytest.mark.slow

DTYPES = ["<f4", "<f2", "<i8", "<i4", "|u1"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
metas = st.dictionaries(st.text(max_size=8).filter(lambda name: name != "arrays"), json_values, max_size=4)
arrays = st.dictionaries(
    st.text(max_size=8),
    npst.arrays(
        st.sampled_from(DTYPES).map(np.dtype),
        npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    max_size=4,
)
frames = st.builds(Frame, st.sampled_from(Kind), st.integers(0, 2**64 - 1), metas, arrays)
streams = st.lists(frames, min_size=1, max_size=4)
pieces = st.lists(st.integers(1, 200), max_size=40)

# Lists of arrays: of sizes around the limits, of what is none, and of both.
sizes = st.sampled_from([-1, 0, 1, 2, 4, 2**30, 2**30 + 1, 2**31, 2**32, 2**63, 2**64, 10**30])
well_formed = st.tuples(st.sampled_from("abcd"), st.sampled_from(DTYPES), st.lists(sizes, max_size=5))
ill_formed = st.tuples(
    json_values,
    st.sampled_from([*DTYPES, "|O", "<f8", "|b1"]) | json_values,
    st.lists(sizes | json_values, max_size=6) | json_values,
)
array_lists = (
    st.lists(well_formed, min_size=1, max_size=2)
    | st.lists(well_formed | ill_formed | json_values, max_size=18)
    | json_values
)


def stream(sent):
    return b"".join(buffer for frame in sent for buffer in encode(frame))


class CheckedMemory:
    """Fails where memory is asked for that the limits do not allow; takes little of it itself."""

    def __init__(self):
        self.bytes = 0

    def __call__(self, shape, dtype):
        self.bytes += math.prod(shape) * dtype.itemsize
        assert self.bytes <= PAYLOAD_LIMIT
        return np.empty(shape, dtype)


def feed(data):
    """What a decoder makes of anything, one read after another; None when it was refused."""
    with suppress(ProtocolError):
        return decode(data, decoder=Decoder(CheckedMemory()))
    return None


@given(streams, pieces)
def test_any_split_gives_the_same_frames(sent, cut):
    """However a stream is cut, the frames that come out are those that went in, in order."""
    decoder = Decoder()
    got = decode(stream(sent), cut, decoder=decoder)
    assert len(got) == len(sent)
    for frame, other in zip(got, sent, strict=True):
        assert_same(frame, other)
    assert decoder.is_between_frames


@given(frames, frames, st.data())
def test_a_stream_that_ends_early(first, second, data):
    """Of a stream cut anywhere, the whole frames arrive, and the decoder knows of the begun one."""
    whole, begun = stream([first]), stream([second])
    cut = data.draw(st.integers(0, len(begun) - 1))
    decoder = Decoder()
    got = decode(whole + begun[:cut], decoder=decoder)
    assert len(got) == 1
    assert_same(got[0], first)
    assert decoder.is_between_frames == (cut == 0)


@given(st.binary(max_size=400))
def test_garbage_is_refused(data):
    """Random bytes never make a frame: they are refused as soon as a header's worth is there."""
    assert feed(data) in ([], None)
    if len(data) >= HEADER_SIZE:
        assert feed(data) is None


@given(streams, st.data())
def test_flipped_bits(sent, data):
    """Bits that flip in a frame's header are always found out; elsewhere they do no other harm."""
    clean = stream(sent)
    damaged = bytearray(clean)
    flips = data.draw(st.sets(st.integers(0, 8 * len(clean) - 1), min_size=1, max_size=3))
    for bit in flips:
        damaged[bit // 8] ^= 1 << bit % 8
    got = feed(bytes(damaged))
    if min(flips) < 8 * HEADER_SIZE:
        assert got is None


@given(streams, st.binary(min_size=1, max_size=60), st.data())
def test_bytes_that_slip_in(sent, slipped, data):
    """Foreign bytes at the end of a frame, such as a stray print, never pass for one."""
    whole = [stream([frame]) for frame in sent]
    place = data.draw(st.integers(0, len(whole)))
    got = feed(b"".join([*whole[:place], slipped, *whole[place:]]))
    if place < len(whole):
        assert got is None
    else:
        assert got is None or len(got) == len(sent)


@settings(max_examples=400)
@given(array_lists, st.sampled_from([0, 1, 4, 8, 2**30]), st.binary(max_size=64))
def test_any_list_of_arrays(listed, declared, payload):
    """Whatever the list of arrays says, it is refused, or the memory taken is just what was declared."""
    memory = CheckedMemory()
    decoder = Decoder(memory)
    try:
        got = decode(raw_frame({"arrays": listed}, payload, declared=declared), decoder=decoder)
    except ProtocolError:
        # Refused at the list, or at what follows a frame that is complete.
        assert memory.bytes in (0, declared)
    else:
        assert memory.bytes == declared
        for frame in got:
            assert sum(array.nbytes for array in frame.arrays.values()) == declared


@given(st.binary(max_size=200) | json_values.map(json.dumps).map(str.encode))
def test_any_meta(meta):
    """Whatever stands for the meta, it is refused, or one frame comes out."""
    got = feed(raw_frame(meta))
    assert got is None or len(got) == 1


readable = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.just(1),
    st.fixed_dictionaries(
        {},
        optional={
            "version": json_values,
            "device": json_values | st.just({"name": "gpu", "kind": "cuda"}),
            "fault": json_values,
            "model": json_values
            | st.fixed_dictionaries({"shapes": json_values}, optional={"name": json_values}),
            "task": st.just("embed") | json_values,
            "seconds": st.just(0.1) | json_values,
            "error": st.sampled_from(["DeviceFailed", "OSError"]) | json_values,
            "text": json_values,
            "cause": json_values,
        },
    ),
    st.dictionaries(
        st.sampled_from(["ids", "mask", "lengths", "types", "shared", "values"]),
        npst.arrays(
            st.sampled_from(DTYPES).map(np.dtype),
            st.sampled_from([(2, 3), (2,), (), (0, 3), (3, 2), (1, 2, 3)]),
        ),
    ),
)


@pytest.mark.parametrize(
    "read", [messages.read_hello, messages.read_load, messages.read_run, messages.read_answer]
)
@given(frame=readable)
def test_any_message(read, frame):
    """Whatever a frame says, reading it gives a value or a `ProtocolError`."""
    with suppress(ProtocolError):
        assert read(frame) is not None


@given(readable)
def test_any_error(frame):
    """Whatever an error's frame says, an error comes out, and one that can be raised."""
    assert isinstance(messages.read_error(frame), ResilientAIError)
