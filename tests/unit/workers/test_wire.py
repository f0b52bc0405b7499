"""Frames: their layout, what they carry, and what is refused before it costs memory."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from resilient_ai._workers.wire import META_LIMIT, PAYLOAD_LIMIT, Decoder, Frame, Kind, ProtocolError, encode
from resilient_ai.errors import DeviceFailed
from wire_kit import HEADER_SIZE, CountedMemory, assert_same, decode, header, raw_frame

MB = 1 << 20


def sent(frame):
    return b"".join(encode(frame))


def test_the_layout_is_the_documented_one():
    """A frame is the header, the JSON and the arrays' bytes, as written by hand from the description."""
    array = np.array([[1, -2]], "<i4")
    meta = b'{"model":"m","arrays":[["ids","<i4",[1,2]]]}'
    by_hand = raw_frame(meta, bytes.fromhex("01000000feffffff"), kind=Kind.RUN, request=2**64 - 1)
    assert sent(Frame(Kind.RUN, 2**64 - 1, {"model": "m"}, {"ids": array})) == by_hand
    assert len(header()) == HEADER_SIZE


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.arange(6, dtype=np.int32).reshape(1, 2, 3, 1),
        np.linspace(-1, 1, 5, dtype=np.float32),
        np.array([np.nan, np.inf, -0.0], np.float16),
        np.array([0, 255], np.uint8),
        np.array(3.5, np.float32),
        np.empty((0, 384), np.float32),
        np.empty((3, 0, 2, 2), np.uint8),
        np.arange(24, dtype=np.int32).reshape(4, 6).T,
        np.arange(24, dtype=np.int32).reshape(4, 6)[::2, ::-3],
        np.broadcast_to(np.float32(2), (3, 4)),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_arrives_as_it_is(array):
    """Type, shape and bytes survive: without sides, without elements, in any order in memory."""
    frame = Frame(Kind.ANSWER, 1, {}, {"a": array, "b": np.uint8([7])})
    (got,) = decode(sent(frame))
    assert_same(got, Frame(Kind.ANSWER, 1, {}, {"a": np.array(array), "b": np.uint8([7])}))


def test_what_lies_in_order_is_not_copied():
    """The buffers to send are the arrays' own memory, read-only ones included."""
    array = np.arange(1000, dtype=np.float32)
    array.flags.writeable = False
    _, view, _ = encode(Frame(Kind.ANSWER, 1, {}, {"values": array}))
    assert np.shares_memory(np.frombuffer(view, np.uint8), array)


def test_arrays_are_filled_in_the_memory_that_was_given():
    """The decoder hands out the very arrays that `allocate` gave, one for each, empty ones too."""
    memory = CountedMemory()
    frame = Frame(Kind.RUN, 1, {}, {"a": np.arange(5, dtype=np.int32), "b": np.empty((0, 2), np.uint8)})
    (got,) = decode(sent(frame), decoder=Decoder(memory))
    assert [id(array) for array in got.arrays.values()] == [id(array) for array in memory.taken]


@pytest.mark.parametrize("dtype", ["f8", "?", "u8", "u2", "i2", ">f4", ">i4", "c8", "S3", "O", "M8[s]"])
def test_types_that_do_not_travel(dtype):
    """What the wire does not carry is refused where it is sent, by name."""
    with pytest.raises(TypeError, match="'odd'"):
        encode(Frame(Kind.RUN, 1, {}, {"odd": np.zeros(2, dtype)}))


@pytest.mark.parametrize("meta", [{"a": object()}, {"a": b"bytes"}, {"arrays": []}, {"a": np.float32(1)}])
def test_metas_that_do_not_travel(meta):
    """A meta that is not JSON, or that uses the wire's own key, is refused where it is sent."""
    with pytest.raises(TypeError):
        encode(Frame(Kind.RUN, 1, meta))


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.RUN, 1, {"a": "x" * META_LIMIT}),
        Frame(Kind.RUN, 1, {}, {"a": np.empty(PAYLOAD_LIMIT + 1, np.uint8)}),
        Frame(Kind.RUN, 1, {}, {"a": np.empty(PAYLOAD_LIMIT, np.uint8), "b": np.uint8([1])}),
        Frame(Kind.RUN, 1, {}, {str(number): np.uint8([1]) for number in range(17)}),
        Frame(Kind.RUN, 1, {}, {"a": np.zeros((1, 1, 1, 1, 1), np.uint8)}),
    ],
    ids=["meta", "array", "arrays", "count", "sides"],
)
def test_frames_that_would_be_refused_are_not_sent(frame):
    """Whatever the other side would refuse is refused on this side, and the stream goes on."""
    with pytest.raises(ProtocolError):
        encode(frame)


def test_the_largest_frame_that_is_allowed():
    """A meta of just the limit, and sixteen arrays of four sides, pass."""
    arrays = {str(number): np.zeros((1, 1, 1, 2), np.uint8) for number in range(16)}
    room = META_LIMIT - len(sent(Frame(Kind.RUN, 1, {"a": ""}, arrays))) + HEADER_SIZE + 32
    frame = Frame(Kind.RUN, 1, {"a": "x" * room}, arrays)
    (got,) = decode(sent(frame))
    assert_same(got, frame)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"crc": 0}, "not the header"),
        ({"magic": b"HTTP"}, "HTTP"),
        ({"version": 1}, "version 1"),
        ({"version": 0}, "version 0"),
        ({"kind": 0}, "kind 0"),
        ({"kind": 255}, "kind 255"),
        ({"meta": 0}, "0 bytes of meta"),
        ({"meta": 1}, "1 bytes of meta"),
        ({"meta": META_LIMIT + 1}, "allowed are"),
        ({"meta": 2**32 - 1}, "allowed are"),
        ({"payload": PAYLOAD_LIMIT + 1}, "allowed are"),
        ({"payload": 2**32 - 1}, "allowed are"),
    ],
)
def test_headers_that_are_refused(fields, words):
    """Each field is checked, and the error says which; no memory is taken for what is declared."""
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=words):
            decode(header(**fields))
        assert tracemalloc.get_traced_memory()[1] < MB
    finally:
        tracemalloc.stop()


def test_no_bit_of_a_header_may_flip():
    """A header with any one bit wrong is refused."""
    for bit in range(8 * HEADER_SIZE):
        data = bytearray(header())
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            decode(bytes(data))


@pytest.mark.parametrize(
    "meta",
    [
        b"  ",
        b"{]",
        b"[]",
        b"3",
        b'"a"',
        b"null",
        b"\xff\xfe",
        b"\x80\x81\x82",
        b'{"a":1}{}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda meta: repr(meta[:12]),
)
def test_metas_that_are_refused(meta):
    """What is not one JSON object, or one nested too deeply, is refused."""
    with pytest.raises(ProtocolError, match="meta"):
        decode(raw_frame(meta))


HUGE = 2**30
ENTRY = ["a", "|u1", [4]]


@pytest.mark.parametrize(
    "arrays",
    [
        None,
        {},
        "a",
        4,
        [4],
        ["abc"],
        [[]],
        [None],
        [["a", "|u1"]],
        [["a", "|u1", [4], 0]],
        [[1, "|u1", [4]]],
        [["a", 1, [4]]],
        [["a", ["|u1"], [4]]],
        [["a", "|u1", 4]],
        [["a", "|u1", "4"]],
        [["a", "|u1", {"0": 4}]],
        [["a", "|u1", [-4]]],
        [["a", "|u1", [-2, -2]]],
        [["a", "|u1", [4.0]]],
        [["a", "|u1", ["4"]]],
        [["a", "|u1", [None]]],
        [["a", "|u1", [True, 4]]],
        [["a", "|u1", [4, 1, 1, 1, 1]]],
        [["b", "|u1", [0, HUGE + 1]], ENTRY],
        [["b", "<i8", [0, HUGE, HUGE, HUGE]], ENTRY],
        [["b", "|u1", [2**63]], ENTRY],
        [["b", "|u1", [0, 10**400]], ENTRY],
        [["a", "|O", [4]]],
        [["a", "object", [4]]],
        [["a", "<f8", [1]]],
        [["a", ">f4", [1]]],
        [["a", "f4", [1]]],
        [["a", "|S4", [1]]],
        [["a", "|V4", [1]]],
        [["a", "|b1", [4]]],
        [["a", "|u1", [3]]],
        [["a", "|u1", [5]]],
        [["a", "<f4", [2]]],
        [],
        [["a", "|u1", [2]], ["a", "|u1", [2]]],
        [[str(number), "|u1", [0]] for number in range(16)] + [ENTRY],
        [[str(number), "|u1", [HUGE]] for number in range(16)],
    ],
    ids=lambda arrays: repr(arrays)[:40],
)
def test_lists_of_arrays_that_are_refused(arrays):
    """Four bytes follow; a list that is not of arrays of these four bytes is refused before any memory is taken."""
    memory = CountedMemory()
    with pytest.raises(ProtocolError):
        decode(raw_frame({"arrays": arrays}, b"1234"), decoder=Decoder(memory))
    assert memory.taken == []


def test_arrays_are_refused_in_few_words():
    """The error about a list of arrays does not repeat a megabyte of it, nor stumble over its depth."""
    for entry in ["x" * 500_000, json.loads("[" * 900 + "]" * 900), {"a": "y" * 500_000}]:
        with pytest.raises(ProtocolError) as caught:
            decode(raw_frame({"arrays": [entry]}))
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("filler", [b"{},", b"[],", b'{"":[]},', b'"\\u1234",', b"1e9,", b"[[[[]]]],"])
def test_a_meta_costs_little_more_than_its_size(filler):
    """The JSON that grows most when it is read stays below 64 MB, for a meta as large as is allowed."""
    body = b'{"a":[' + filler * (META_LIMIT // len(filler) - 4) + b"0]}"
    tracemalloc.start()
    try:
        assert len(decode(raw_frame(body))) == 1
        assert tracemalloc.get_traced_memory()[1] < 64 * MB
    finally:
        tracemalloc.stop()


def test_frames_stand_alone():
    """A frame that comes twice is two frames, each with memory of its own: pairing is not the wire's."""
    data = sent(Frame(Kind.ANSWER, 4, {"a": 1}, {"values": np.ones(3, np.float32)}))
    first, second = decode(data * 2)
    assert_same(first, second)
    assert not np.shares_memory(first.arrays["values"], second.arrays["values"])


def test_the_decoder_knows_where_a_frame_ends():
    """It is between frames before the first byte and after the last, and nowhere else."""
    data = sent(Frame(Kind.ANSWER, 4, {"a": 1}, {"values": np.ones(3, np.float32)}))
    decoder = Decoder()
    assert decoder.is_between_frames
    for place in range(len(data) - 1):
        assert decode(data[place : place + 1], decoder=decoder) == []
        assert not decoder.is_between_frames
    assert len(decode(data[-1:], decoder=decoder)) == 1
    assert decoder.is_between_frames


def test_no_byte_of_the_next_frame_is_asked_for():
    """What the decoder wants, added up, is just the frame: reading on never takes what comes after."""
    data = sent(Frame(Kind.ANSWER, 4, {"a": 1}, {"x": np.ones(3, np.float32), "y": np.ones(5, np.uint8)}))
    decoder, place, frame = Decoder(), 0, None
    while frame is None:
        wanted = decoder.wanted()
        wanted[:] = data[place : place + len(wanted)]
        place += len(wanted)
        frame = decoder.advance(len(wanted))
    assert place == len(data)


def test_a_protocol_error_blames_the_device():
    """A worker that speaks nonsense is a device that failed: another serves its callers."""
    assert issubclass(ProtocolError, DeviceFailed)
    assert (ProtocolError.whose, ProtocolError.retryable) == ("device", True)
