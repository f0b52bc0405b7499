"""What the CUDA driver says of its cards before there is a session: ctypes on libcuda.

Not thread-safe; every call may hang where the driver does.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Any, Final

__all__ = ["Attribute", "Card", "ComputeMode", "Driver", "DriverError"]

_LONGEST_NAME: Final = 256


class DriverError(Exception):
    """Raised when a call of the driver fails; `code` is its error number (the runtime has the same)."""

    def __init__(self, code: int, words: str, function: str) -> None:
        super().__init__(f"CUDA error {code}: {words} ({function})")
        self.code = code


class Attribute(IntEnum):
    """What can be asked of a card, by the numbers of `cuda.h`."""

    COMPUTE_MODE = 20
    CAPABILITY_MAJOR = 75
    CAPABILITY_MINOR = 76
    MPS_ENABLED = 133


class ComputeMode(IntEnum):
    """Who may use a card."""

    DEFAULT = 0
    PROHIBITED = 2
    EXCLUSIVE_PROCESS = 3


class Driver:
    """The driver; `library` is libcuda, or whatever has its functions."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def version(self) -> tuple[int, int]:
        """The newest CUDA it supports, as (major, minor). Needs no `start`."""
        found = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(found))
        return found.value // 1000, found.value % 1000 // 10

    def start(self) -> None:
        """Make it ready for all that follows; makes no context."""
        self.call("cuInit", 0)

    def count(self) -> int:
        """How many cards this process can see."""
        found = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(found))
        return found.value

    def card(self, ordinal: int) -> Card:
        handle = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(handle), ordinal)
        return Card(self, handle)

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the library. Raises `DriverError` when it does not return 0."""
        code = getattr(self._library, function)(*arguments)
        if code:
            raise DriverError(code, self._words(code), function)

    def _words(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        return "an error without a name" if text.value is None else text.value.decode(errors="replace")


class Card:
    """One card of the driver's."""

    def __init__(self, driver: Driver, handle: ctypes.c_int) -> None:
        self._driver = driver
        self._handle = handle

    def name(self) -> str:
        text = ctypes.create_string_buffer(_LONGEST_NAME)
        self._driver.call("cuDeviceGetName", text, _LONGEST_NAME, self._handle)
        return text.value.decode(errors="replace")

    def attribute(self, which: Attribute) -> int | None:
        """Its value; None where the driver is too old to know it."""
        found = ctypes.c_int()
        try:
            self._driver.call("cuDeviceGetAttribute", ctypes.byref(found), int(which), self._handle)
        except DriverError:
            return None
        return found.value

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all, in the card's primary context: the one that ONNX Runtime will use.

        Makes the context and keeps it for the life of the process, so that what is free afterwards
        is free for data.
        """
        context = ctypes.c_void_p()
        self._driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._handle)
        self._driver.call("cuCtxSetCurrent", context)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        try:
            self._driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        finally:
            self._driver.call("cuCtxSetCurrent", None)
        return free.value, total.value
