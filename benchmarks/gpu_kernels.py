"""Real faults on a real card, without a compiler: kernels in PTX, and a process that eats memory.

ONNX Runtime works in the card's primary context. A kernel that is launched there poisons or blocks
the very context that its next run uses, so the errors seen are its own.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resilient_ai._workers.child.driver import Driver, DriverError

__all__ = ["Kernels", "eat_memory", "eaten_memory", "free_memory", "open_context"]

PTX = b"""
.version 7.0
.target sm_75
.address_size 64
.visible .entry k_trap() { trap; }
.visible .entry k_oob()
{
    .reg .u64 %a;
    .reg .u32 %v;
    mov.u64 %a, 4096;
    mov.u32 %v, 1;
    st.global.u32 [%a], %v;
    ret;
}
.visible .entry k_spin(.param .u64 flag)
{
    .reg .u64 %a;
    .reg .u32 %v;
    .reg .pred %q;
    ld.param.u64 %a, [flag];
AGAIN:
    ld.volatile.global.u32 %v, [%a];
    setp.eq.u32 %q, %v, 0;
    @%q bra AGAIN;
    ret;
}
"""

_DEVICE_MAP = 2
_EVERY_PROCESSOR = 4096  # blocks of 1024 threads: no card has room for so many, so nothing else gets in
_PIECES = (1 << 30, 1 << 26, 1 << 22)


class Kernels:
    """Kernels in the primary context of a card: `trap` and `out_of_bounds` poison it, `spin` blocks it."""

    def __init__(self, card: int = 0) -> None:
        self._driver, context = open_context(card)
        self._context = context
        module = ctypes.c_void_p()
        self._driver.call("cuModuleLoadData", ctypes.byref(module), PTX)
        self._module = module
        self._flag = self._host_flag()

    def trap(self) -> None:
        self._launch("k_trap")

    def out_of_bounds(self) -> None:
        self._launch("k_oob")

    def spin(self) -> None:
        """Occupy the whole card until `release`."""
        device = ctypes.c_uint64()
        self._driver.call("cuMemHostGetDevicePointer_v2", ctypes.byref(device), self._flag, 0)
        self._launch("k_spin", device, blocks=_EVERY_PROCESSOR, threads=1024)

    def release(self) -> None:
        ctypes.cast(self._flag, ctypes.POINTER(ctypes.c_uint32))[0] = 1

    def _launch(self, name: str, *arguments: Any, blocks: int = 1, threads: int = 1) -> None:
        function = ctypes.c_void_p()
        self._driver.call("cuCtxSetCurrent", self._context)
        self._driver.call("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
        pointers = (ctypes.c_void_p * max(1, len(arguments)))(*(ctypes.addressof(one) for one in arguments))
        grid = (blocks, 1, 1, threads, 1, 1)
        self._driver.call("cuLaunchKernel", function, *grid, 0, None, pointers, None)

    def _host_flag(self) -> ctypes.c_void_p:
        flag = ctypes.c_void_p()
        self._driver.call("cuMemHostAlloc", ctypes.byref(flag), ctypes.c_size_t(4096), _DEVICE_MAP)
        ctypes.memset(flag, 0, 4096)
        return flag


def open_context(card: int) -> tuple[Driver, ctypes.c_void_p]:
    """The driver, and the card's primary context, which is made current."""
    driver = Driver(ctypes.CDLL("libcuda.so.1"))
    driver.start()
    device, context = ctypes.c_int(), ctypes.c_void_p()
    driver.call("cuDeviceGet", ctypes.byref(device), card)
    driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    driver.call("cuCtxSetCurrent", context)
    return driver, context


def free_memory(driver: Driver) -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value


def eat_memory(leave: int, card: int = 0) -> None:
    """Take the card's memory until only `leave` bytes are free; say so, hold it until stdin ends."""
    driver, _ = open_context(card)
    for piece in _PIECES:
        try:
            while free_memory(driver) - piece >= leave:
                driver.call("cuMemAlloc_v2", ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(piece))
        except DriverError:  # less than it said: fragments; smaller pieces fit
            continue
    print(free_memory(driver), flush=True)
    sys.stdin.read()


@contextmanager
def eaten_memory(leave: int) -> Iterator[int]:
    """Another process holds the card's memory meanwhile; yields what it left free."""
    command = [sys.executable, "-c", f"from gpu_kernels import eat_memory; eat_memory({leave})"]
    here, pipe = Path(__file__).parent, subprocess.PIPE
    with subprocess.Popen(command, cwd=here, stdin=pipe, stdout=pipe, text=True) as eater:
        assert eater.stdout is not None
        try:
            yield int(eater.stdout.readline() or -1)
        finally:
            eater.kill()
