"""Messages: values arrive as they were sent, and what is no message is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from resilient_ai import errors
from resilient_ai._resilience.failures import Classifier
from resilient_ai._workers.messages import (
    DeviceSpec,
    ModelSpec,
    answer_frame,
    error_frame,
    hello_frame,
    load_frame,
    read_answer,
    read_error,
    read_hello,
    read_load,
    read_run,
    run_frame,
)
from resilient_ai._workers.wire import META_LIMIT, Frame, Kind, ProtocolError, encode
from resilient_ai.errors import DeviceFailed
from resilient_ai.testing import batch_of
from resilient_ai.values import Vectors
from wire_kit import decode

GPU = DeviceSpec(
    name="gpu:1",
    kind="cuda",
    card=1,
    memory_fraction=0.5,
    allow_growth=False,
    tensorrt="auto",
    tensorrt_cache="/var/cache/engines",
    threads=3,
    injectable=True,
)
MODEL = ModelSpec(
    name="m",
    graph="/models/m.onnx",
    task="maxsim",
    pooling="mean",
    fuse=False,
    vocabulary=30_522,
    shapes=((1, 8), (32, 512)),
)
BATCH = batch_of([101, 7, 102], [101, 102])


def over(frame):
    """The frame as it comes out at the other end."""
    (got,) = decode(b"".join(encode(frame)))
    return got


def changed(frame, *, arrays=None, **meta):
    """A frame that came, with parts of it replaced; None takes a part away."""
    parts = {**frame.meta, **meta}
    filled = {**frame.arrays, **(arrays or {})}
    return Frame(
        frame.kind,
        frame.id,
        {name: part for name, part in parts.items() if part is not None},
        {name: array for name, array in filled.items() if array is not None},
    )


@pytest.mark.parametrize("spec", [GPU, DeviceSpec(name="simulated", kind="cpu")])
@pytest.mark.parametrize("fault", [None, {"kind": "hang", "phase": "imports"}])
def test_a_hello_arrives(spec, fault):
    """The device, the version and the fault of the start are what was sent."""
    frame = over(hello_frame(3, spec, version="1.2.3", fault=fault))
    assert (frame.kind, frame.id) == (Kind.HELLO, 3)
    assert read_hello(frame) == (spec, "1.2.3", fault)


@pytest.mark.parametrize("spec", [MODEL, ModelSpec(name="m", graph="g")])
def test_a_load_arrives(spec):
    """The model is what was sent, its shapes as tuples again."""
    frame = over(load_frame(4, spec))
    assert (frame.kind, frame.id) == (Kind.LOAD, 4)
    assert read_load(frame) == spec


@pytest.mark.parametrize("types", [None, np.array([[0, 1, 1], [0, 0, 255]])])
@pytest.mark.parametrize("shared", [None, np.array([5, 2**31 - 1])])
@pytest.mark.parametrize("fault", [None, {"kind": "oom"}])
def test_a_batch_arrives(types, shared, fault):
    """Ids, mask, lengths and what may go with them are what was sent, 64 bits wide again."""
    batch = dataclasses.replace(BATCH, task="maxsim", type_ids=types, shared_ids=shared)
    got, told = read_run(over(run_frame(5, batch, fault=fault)))
    assert (got.model, got.task, told) == (batch.model, "maxsim", fault)
    for name in ("input_ids", "attention_mask", "lengths", "type_ids", "shared_ids"):
        value, expected = getattr(got, name), getattr(batch, name)
        assert np.array_equal(value, expected) if expected is not None else value is None
        assert value is None or value.dtype == np.int64


def test_a_batch_travels_light():
    """A token takes five bytes of the wire: four for its id, one for its mask."""
    batch = batch_of(*[[7] * 512] * 32)
    buffers = encode(run_frame(1, batch))
    tokens = 32 * 512
    assert sum(map(len, buffers)) < 5 * tokens + 500


def test_an_answer_arrives():
    """Values to the bit, the device and its time are what was sent."""
    values = np.array([[np.nan, -0.0], [np.inf, 1e-40]], np.float32)
    got = read_answer(over(answer_frame(6, Vectors(values, "gpu:1", seconds=0.25))))
    assert got.values.tobytes() == values.tobytes()
    assert (got.device, got.seconds) == ("gpu:1", 0.25)


@pytest.mark.parametrize(
    "error",
    [
        "ConfigurationError",
        "DeviceFailed",
        "DeviceUnavailable",
        "InvalidInput",
        "ModelCorrupt",
        "ModelNotFound",
    ],
)
def test_own_errors_keep_their_class(error):
    """An error of this library is raised in the host as what it was, with its text."""
    got = read_error(over(error_frame(7, getattr(errors, error)("what happened"))))
    assert type(got) is getattr(errors, error)
    assert str(got) == "what happened"


def test_foreign_errors_are_the_devices():
    """Any other error becomes `DeviceFailed`, told with the name of its class."""
    got = read_error(over(error_frame(7, RuntimeError("CUDA failure 700"))))
    assert type(got) is DeviceFailed
    assert str(got) == "RuntimeError: CUDA failure 700"
    assert str(read_error(over(error_frame(7, KeyError())))) == "KeyError: KeyError()"


def test_an_error_brings_its_cause():
    """The text of the cause, by which failures are classified, is told, and only once."""
    cause = RuntimeError("CUDA failure 700: an illegal memory access was encountered")
    error = DeviceFailed("the batch failed")
    error.__cause__ = cause
    got = read_error(over(error_frame(7, error)))
    assert str(got) == f"the batch failed (RuntimeError: {cause})"
    assert str(Classifier().classify(got).failure_class) == "poisoned"
    repeating = DeviceFailed(f"the batch failed: {cause}")
    repeating.__cause__ = cause
    assert str(read_error(over(error_frame(7, repeating)))) == str(repeating)


def test_endless_texts_are_cut_in_the_middle():
    """Of a text of any length both ends arrive, and the frame stays within its limit."""
    error = DeviceFailed("begin" + "\N{FIRE}" * META_LIMIT + "end")
    error.__cause__ = RuntimeError("\x00" * META_LIMIT)
    got = str(read_error(over(error_frame(7, error))))
    assert got.startswith("begin")
    assert "end (RuntimeError" in got
    assert len(got) < 40_000
    raw = Frame(Kind.ERROR, 7, {"error": "DeviceFailed", "text": "x" * 900_000})
    assert len(str(read_error(over(raw)))) < 20_000


@pytest.mark.parametrize("value", [None, 3, [], {"a": 1}, json.loads("[" * 900 + "]" * 900)])
def test_an_error_is_an_error_whatever_it_says(value):
    """A frame of kind ERROR that says nothing sensible is still a device that failed."""
    got = read_error(over(Frame(Kind.ERROR, 7, {"error": value, "text": value, "cause": value})))
    assert type(got) is DeviceFailed


HELLO, LOAD, RUN = hello_frame(1, GPU, version="1"), load_frame(1, MODEL), run_frame(1, BATCH)
ANSWER = answer_frame(1, Vectors(np.ones((2, 3), np.float32), "gpu"))


def spec_with(frame, part, **fields):
    return changed(frame, **{part: {**frame.meta[part], **fields}})


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.HELLO, 1),
        changed(HELLO, device=None),
        changed(HELLO, device=[]),
        changed(HELLO, device={}),
        changed(HELLO, device={"name": "gpu"}),
        changed(HELLO, version=None),
        changed(HELLO, version=3),
        changed(HELLO, fault="hang"),
        spec_with(HELLO, "device", colour="red"),
    ],
)
def test_hellos_that_are_refused(frame):
    """A hello without its parts, or with parts this version does not know, is refused."""
    with pytest.raises(ProtocolError):
        read_hello(frame)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.LOAD, 1),
        changed(LOAD, model=3),
        changed(LOAD, model={}),
        changed(LOAD, model={"shapes": []}),
        spec_with(LOAD, "model", shapes=None),
        spec_with(LOAD, "model", shapes=3),
        spec_with(LOAD, "model", shapes=[3]),
        spec_with(LOAD, "model", shapes=[[1, 2, 3]]),
        spec_with(LOAD, "model", colour="red"),
    ],
)
def test_loads_that_are_refused(frame):
    """A model without its parts, or with parts this version does not know, is refused."""
    with pytest.raises(ProtocolError):
        read_load(frame)


def test_another_version_is_named():
    """A hello with a part that is not known says which one, by which version, and what to do."""
    with pytest.raises(ProtocolError, match=r"version 1,.*colour.*same version of resilient-ai"):
        read_hello(spec_with(HELLO, "device", colour="red"))


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.RUN, 1),
        changed(RUN, model=None),
        changed(RUN, model=3),
        changed(RUN, task=None),
        changed(RUN, task="sing"),
        changed(RUN, task=["embed"]),
        changed(RUN, model=json.loads("[" * 900 + "]" * 900)),
        changed(RUN, fault="hang"),
        changed(RUN, arrays={"ids": None}),
        changed(RUN, arrays={"mask": None}),
        changed(RUN, arrays={"lengths": None}),
        changed(RUN, arrays={"ids": np.full((2, 3), np.nan, np.float32)}),
        changed(RUN, arrays={"ids": np.zeros(6, np.int32)}),
        changed(RUN, arrays={"ids": np.zeros((2, 4), np.int32)}),
        changed(RUN, arrays={"mask": np.zeros((1, 3), np.uint8)}),
        changed(RUN, arrays={"lengths": np.zeros(3, np.int32)}),
        changed(RUN, arrays={"lengths": np.zeros((2, 1), np.int32)}),
        changed(RUN, arrays={"types": np.zeros((2, 2), np.uint8)}),
        changed(RUN, arrays={"shared": np.zeros((1, 2), np.int32)}),
    ],
)
def test_batches_that_are_refused(frame):
    """A batch whose parts are missing, of the wrong type or do not fit together is refused."""
    with pytest.raises(ProtocolError):
        read_run(frame)


@pytest.mark.parametrize("told", ["x" * 500_000, ["y" * 500_000]])
def test_batches_are_refused_in_few_words(told):
    """The error about a batch does not repeat the half megabyte that stands for its task."""
    with pytest.raises(ProtocolError) as caught:
        read_run(changed(RUN, task=told))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.ANSWER, 1),
        changed(ANSWER, arrays={"values": None}),
        changed(ANSWER, arrays={"values": np.ones((2, 3), np.float16)}),
        changed(ANSWER, arrays={"values": np.ones((2, 3), np.int32)}),
        changed(ANSWER, arrays={"values": np.ones(3, np.float32)}),
        changed(ANSWER, arrays={"values": np.ones((1, 2, 3), np.float32)}),
        changed(ANSWER, device=None),
        changed(ANSWER, device=3),
        changed(ANSWER, seconds=None),
        changed(ANSWER, seconds="0.1"),
        changed(ANSWER, seconds=-0.1),
        changed(ANSWER, seconds=float("nan")),
        changed(ANSWER, seconds=float("inf")),
        changed(ANSWER, seconds=10**400),
    ],
)
def test_answers_that_are_refused(frame):
    """An answer without values, device or a number of seconds is refused."""
    with pytest.raises(ProtocolError):
        read_answer(frame)
