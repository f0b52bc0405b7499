"""Callers' errors are told before anything else sees them."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from resilient_ai._serving import arguments as check
from resilient_ai.errors import InvalidInput


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "texts",
    [
        ["a", "b"],
        ("a", "b"),
        iter(["a", "b"]),
        {"a": 1, "b": 2},
        (t for t in "ab"),
        [Text("a"), np.str_("b")],
    ],
)
def test_texts(texts):
    """Any iterable of strings will do, subclasses of `str` included."""
    assert list(check.check_texts(texts)) == ["a", "b"]


def test_texts_are_copied():
    """What the caller does with its list later changes nothing."""
    texts = ["a", "b"]
    checked = check.check_texts(texts)
    texts[0] = "z"
    texts.clear()
    assert list(checked) == ["a", "b"]


@pytest.mark.parametrize("texts", ["one text", b"bytes", bytearray(b"x"), None, 5, 1.5, object()])
def test_what_is_no_list(texts):
    """A single string, bytes and what cannot be iterated are refused."""
    with pytest.raises(InvalidInput, match="list of strings"):
        check.check_texts(texts)


@pytest.mark.parametrize("bad", [None, b"x", 1, 1.0, ["a"], object()])
def test_what_is_no_text(bad):
    """The first item that is no string is named by its place."""
    with pytest.raises(InvalidInput, match=r"documents\[2\]"):
        check.check_texts(["a", "b", bad, 3], what="documents")


def test_errors_of_the_callers_own_iterable():
    """What the caller's iterable raises is not taken for a wrong argument."""

    def broken():
        yield "a"
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine") as caught:
        check.check_texts(broken())
    assert not isinstance(caught.value, InvalidInput)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, 7.0),
        (1, 1.0),
        (0.5, 0.5),
        (float("inf"), None),
        (sys.maxsize, None),
        (10**400, None),
        (1e300, None),
        (np.float64(2), 2.0),
    ],
)
def test_timeouts(given, expected):
    """Seconds are taken as they are; more than a thread can wait for is no limit."""
    assert check.check_timeout(given, 7.0) == expected
    assert expected is None or expected <= threading.TIMEOUT_MAX


@pytest.mark.parametrize("bad", [0, -1, -0.0, float("nan"), float("-inf"), True, "5", [], object()])
def test_bad_timeouts(bad):
    """Zero, negative, NaN and what is no number are refused."""
    with pytest.raises(InvalidInput, match="timeout"):
        check.check_timeout(bad, None)


@pytest.mark.parametrize("bad", [0, -1, True, False, 1.0, "1", [], float("nan")])
def test_bad_counts(bad):
    """Counts are whole numbers of at least 1."""
    with pytest.raises(InvalidInput, match="top_k"):
        check.check_top_k(bad)
    with pytest.raises(InvalidInput, match="dimensions"):
        check.check_dimensions(bad, 10)


def test_good_counts():
    """None is the default: all of them."""
    assert (check.check_top_k(None), check.check_top_k(3)) == (None, 3)
    assert [check.check_dimensions(d, 10) for d in (None, 1, 10)] == [10, 1, 10]
    with pytest.raises(InvalidInput, match="10"):
        check.check_dimensions(11, 10)


@pytest.mark.parametrize("bad", [None, "urgent", "", 1, [], {}])
def test_words(bad):
    """Priorities and input types are words of a short list."""
    with pytest.raises(InvalidInput, match="interactive"):
        check.check_priority(bad)
    with pytest.raises(InvalidInput, match="query"):
        check.check_input_type(bad)


@pytest.mark.parametrize("bad", ["text", b"x", None, 5])
def test_bad_streams(bad):
    """A stream is an iterable that is no string."""
    with pytest.raises(InvalidInput, match="iterable"):
        check.check_stream(bad)


@pytest.mark.parametrize("bad", [b"x", 5, ["x"]])
def test_bad_instructions(bad):
    """An instruction is a string or nothing."""
    with pytest.raises(InvalidInput, match="instruction"):
        check.check_instruction(bad)
    assert check.check_instruction(None) is None
