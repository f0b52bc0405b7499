"""The errors: the tree that is drawn is the tree that is, and every error travels whole."""

import copy
import pickle
import re
from typing import get_args

import pytest

from resilient_ai import errors
from resilient_ai.errors import AllBackendsFailed, Overloaded, ResilientAIError

CLASSES = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)
]
LEAVES = [cls for cls in CLASSES if cls is not ResilientAIError]
DRAWN = re.findall(r"[├└]── (\w+)(?: \((\w+)\))?\s+(caller|device|service|model)\s+\S", errors.__doc__)


def build(cls):
    if cls is Overloaded:
        return cls("what happened", retry_after=2.5)
    if cls is AllBackendsFailed:
        return cls("what happened", (ValueError("one"), errors.DeviceFailed("two")))
    return cls("what happened")


def test_the_drawn_tree_is_the_real_one():
    """Each line of the drawing is a class with that builtin base and that party to act, and none is missing."""
    real = {
        cls.__name__: (
            next((base.__name__ for base in cls.__bases__ if base is not ResilientAIError), ""),
            cls.whose,
        )
        for cls in LEAVES
    }
    assert {name: (base, whose) for name, base, whose in DRAWN} == real
    assert len(DRAWN) == len(real)
    assert re.search(r"(?m)^    ResilientAIError$", errors.__doc__)


@pytest.mark.parametrize("cls", LEAVES)
def test_every_error_hangs_on_the_root(cls):
    """`except ResilientAIError` catches each error, with no class in between."""
    assert cls.__bases__[0] is ResilientAIError


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_answers_three_questions(cls):
    """A program can branch on `code`, `retryable` and `whose` of every error."""
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", cls.code)
    assert isinstance(cls.retryable, bool)
    assert cls.whose in get_args(errors.Whose)


def test_codes_are_unique():
    """A code names one class."""
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)


def test_what_the_caller_must_change_is_not_retryable():
    """The same call does not succeed later when it is the caller who has to act."""
    assert [cls for cls in LEAVES if cls.whose == "caller" and cls.retryable] == []


def test_every_class_is_exported():
    """`__all__` has every error and nothing that does not exist."""
    assert {cls.__name__ for cls in CLASSES} | {"Whose"} == set(errors.__all__)


@pytest.mark.parametrize(
    "travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy]
)
@pytest.mark.parametrize("cls", CLASSES)
def test_errors_travel_whole(cls, travel):
    """Pickled or copied, an error keeps its class, message and attributes."""
    error = build(cls)
    error.add_note("a note")
    other = travel(error)
    assert type(other) is cls
    assert other.args == error.args
    assert str(other) == "what happened"
    assert repr(vars(other)) == repr(vars(error))


def test_the_attributes_have_defaults():
    """Errors that carry more than a message can be raised with the message alone."""
    assert Overloaded("full").retry_after > 0
    assert AllBackendsFailed("all").causes == ()
