"""Reads a pickle of a dictionary of tensors as data; nothing in it is ever called.

The machine below knows the instructions that `torch.save` writes for a state dictionary. The two
functions such a pickle names are known by name and done here; a pickle that names another one is
refused.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

__all__ = ["Storage", "Strided", "UnreadablePickle", "read_state"]

_DTYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "torch FloatStorage": "F32",
        "torch HalfStorage": "F16",
        "torch BFloat16Storage": "BF16",
        "torch DoubleStorage": "F64",
        "torch LongStorage": "I64",
        "torch IntStorage": "I32",
        "torch ShortStorage": "I16",
        "torch CharStorage": "I8",
        "torch ByteStorage": "U8",
        "torch BoolStorage": "BOOL",
    }
)
_DICT: Final = "collections OrderedDict"
_TENSOR: Final = "torch._utils _rebuild_tensor_v2"
_PARAMETER: Final = "torch._utils _rebuild_parameter"
_KNOWN: Final = frozenset({*_DTYPES, _DICT, _TENSOR, _PARAMETER})

# The instructions by their codes, which are the first byte of each. Formats are those of `struct`.
_NUMBERS: Final = MappingProxyType({b"J": "<i", b"K": "<B", b"M": "<H"})
_TEXTS: Final = MappingProxyType({b"X": "<I", b"\x8c": "<B", b"\x8d": "<Q"})
_FIXED: Final = MappingProxyType({b"N": None, b"\x88": True, b"\x89": False, b")": ()})
_TUPLES: Final = MappingProxyType({b"\x85": 1, b"\x86": 2, b"\x87": 3})
_NOTES: Final = MappingProxyType({b"q": "<B", b"r": "<I"})
_RECALLS: Final = MappingProxyType({b"h": "<B", b"j": "<I"})
_SKIPPED: Final = MappingProxyType({b"\x80": 1, b"\x95": 8})  # versions and sizes of parts
_LONG, _DICTIONARY, _GLOBAL, _STACK_GLOBAL, _MEMOIZE = b"\x8a", b"}", b"c", b"\x93", b"\x94"
_MARK, _TUPLE, _SET_ITEM, _SET_ITEMS, _END = b"(", b"t", b"s", b"u", b"."
_STORED, _CALL, _ATTRIBUTES = b"Q", b"R", b"b"

_SHOWN: Final = 100


class UnreadablePickle(Exception):
    """Raised when a pickle is broken or holds more than a dictionary of tensors."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers of one type; `dtype` is named as safetensors does, `count` is how many there are."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class Strided:
    """A view of a storage; `offset` and `strides` count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether the numbers lie one after the other, the last axis fastest."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


@dataclass(frozen=True, slots=True)
class _Global:
    """A function or class that the pickle names."""

    name: str


def read_state(text: bytes) -> dict[str, Strided]:
    """The tensors that a pickled state dictionary describes.

    Raises:
        UnreadablePickle: whatever else it is.
    """
    try:
        state = _Machine(text).run()
    except (ValueError, TypeError, LookupError, AttributeError) as exc:
        raise UnreadablePickle(f"it makes no sense ({type(exc).__name__}: {exc})") from exc
    if not isinstance(state, dict):
        raise UnreadablePickle("it is no dictionary")
    for name, value in state.items():
        if not isinstance(value, Strided):
            raise UnreadablePickle(f"entry {name[:_SHOWN]!r} is no tensor")
    return state


class _Machine:
    """A pickle being read: where, a stack of values, the places of open groups, and what was noted."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._notes: dict[int, Any] = {}

    def run(self) -> Any:
        """What is on top of the stack when the pickle ends."""
        groups = (self._push, self._group, self._note, self._make)
        while (code := self._bytes(1)) != _END:
            if not any(step(code) for step in groups):
                raise UnreadablePickle(f"it uses the instruction {code!r}")
        return self._stack.pop()

    # Each of these does one instruction, and says whether it was one of its own.

    def _push(self, code: bytes) -> bool:
        if code in _NUMBERS:
            self._stack.append(self._number(_NUMBERS[code]))
        elif code in _TEXTS:
            self._stack.append(self._bytes(self._number(_TEXTS[code])).decode())
        elif code in _FIXED:
            self._stack.append(_FIXED[code])
        elif code == _LONG:
            self._stack.append(int.from_bytes(self._bytes(self._number("<B")), "little", signed=True))
        elif code == _DICTIONARY:
            self._stack.append({})
        elif code == _GLOBAL:
            self._stack.append(_known(f"{self._line()} {self._line()}"))
        else:
            return False
        return True

    def _group(self, code: bytes) -> bool:
        if code == _MARK:
            self._marks.append(len(self._stack))
        elif code == _TUPLE:
            self._stack.append(self._since_mark())
        elif code in _TUPLES:
            self._stack.append(self._taken(_TUPLES[code]))
        elif code == _SET_ITEM:
            self._set_items(self._taken(2))
        elif code == _SET_ITEMS:
            self._set_items(self._since_mark())
        else:
            return False
        return True

    def _note(self, code: bytes) -> bool:
        if code in _NOTES:
            self._notes[self._number(_NOTES[code])] = self._stack[-1]
        elif code == _MEMOIZE:
            self._notes[len(self._notes)] = self._stack[-1]
        elif code in _RECALLS:
            self._stack.append(self._notes[self._number(_RECALLS[code])])
        elif code in _SKIPPED:
            self._bytes(_SKIPPED[code])
        else:
            return False
        return True

    def _make(self, code: bytes) -> bool:
        if code == _STORED:
            self._stack.append(_storage(*self._stack.pop()))
        elif code == _STACK_GLOBAL:
            self._stack.append(_known(" ".join(self._taken(2))))
        elif code == _CALL:
            self._stack.append(_made(*self._taken(2)))
        elif code == _ATTRIBUTES:
            # PyTorch notes versions on the dictionary itself; nobody here asks for them.
            self._taken(1)
        else:
            return False
        return True

    def _bytes(self, count: int) -> bytes:
        found = self._text[self._at : self._at + count]
        if len(found) != count:
            raise ValueError("it ends too early")
        self._at += count
        return found

    def _number(self, form: str) -> int:
        number: int = struct.unpack(form, self._bytes(struct.calcsize(form)))[0]
        return number

    def _line(self) -> str:
        end = self._text.index(b"\n", self._at)
        line = self._text[self._at : end].decode()
        self._at = end + 1
        return line

    def _since_mark(self) -> tuple[Any, ...]:
        return self._taken(len(self._stack) - self._marks.pop())

    def _taken(self, count: int) -> tuple[Any, ...]:
        """The uppermost values of the stack, taken off."""
        start = len(self._stack) - count
        if start < 0 or count < 0:
            raise ValueError("too little on the stack")
        taken = tuple(self._stack[start:])
        del self._stack[start:]
        return taken

    def _set_items(self, items: tuple[Any, ...]) -> None:
        target = self._stack[-1]
        # A key is hashed, and to hash tuples nested a million deep would crash the process.
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in items[::2]):
            raise TypeError("items of what is no dictionary by name")
        target.update(zip(items[::2], items[1::2], strict=True))


def _known(name: str) -> _Global:
    if name not in _KNOWN:
        raise UnreadablePickle(f"it names {name[:_SHOWN].replace(' ', '.')}")
    return _Global(name)


def _storage(kind: Any, dtype: Any, key: Any, _location: Any, count: Any) -> Storage:
    if kind != "storage" or not isinstance(key, str) or not isinstance(count, int):
        raise TypeError("a storage that is none")
    return Storage(_DTYPES[dtype.name], key, count)


def _made(function: Any, arguments: Any) -> Any:
    """What a call that the pickle asks for would give."""
    name = function.name
    if name == _DICT and arguments == ():
        return {}
    if name == _PARAMETER:
        return arguments[0]
    if name != _TENSOR:
        raise UnreadablePickle(f"it calls {name.replace(' ', '.')}")
    storage, offset, shape, strides, *_ = arguments
    return _strided(storage, offset, shape, strides)


def _strided(storage: Any, offset: Any, shape: Any, strides: Any) -> Strided:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or any(type(each) is not int or each < 0 for each in numbers):
        raise TypeError("a tensor that is none")
    if len(shape) != len(strides):
        raise ValueError("a tensor of two minds about its axes")
    return Strided(storage, offset, tuple(shape), tuple(strides))
