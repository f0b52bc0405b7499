"""Memory that is lent and comes back: token matrices and receive buffers without new allocations.

Blocks are rounded up to size classes (four to a power of two, so at most a fifth is wasted) and
kept for reuse inside one byte budget. A `Lease` gives out an array and takes it back once.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from resilient_ai.errors import ConfigurationError, InvalidInput, Overloaded

__all__ = ["BufferPool", "Lease", "PoolStatistics"]

_SMALLEST_BLOCK = 4096
_STEPS_PER_DOUBLING = 4


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot of a `BufferPool`; sizes in bytes.

    `allocated` counts lent and idle blocks, `peak` its highest value; `leases` are open now, shared
    ones included; `leases_total` were ever asked of the pool, `allocations` of them took new memory
    and `reuses` did not; `fragmentation` is the share of lent memory that nobody asked for (rounding
    up to size classes).
    """

    budget: int
    allocated: int
    peak: int
    lent: int
    leases: int
    leases_total: int
    allocations: int
    reuses: int
    fragmentation: float


class Lease:
    """One array on loan. Use as a context manager, or call `release` exactly once.

    `array` raises `InvalidInput` after the return, and so does a second `release`: both are bugs
    of the borrower that would otherwise show as another caller's corrupted data.
    `share` gives a second lease on the same memory, for a reader that may outlive the first;
    the block returns to the pool when every lease on it is released.
    """

    __slots__ = ("_array", "_block", "_pool")

    def __init__(self, pool: BufferPool, block: _Block, array: NDArray[Any]) -> None:
        self._pool = pool
        self._block = block
        self._array: NDArray[Any] | None = array

    @property
    def array(self) -> NDArray[Any]:
        if self._array is None:
            raise InvalidInput("this buffer was already returned to its pool; take a new lease")
        return self._array

    def share(self) -> Lease:
        with self._pool._returned:  # noqa: SLF001 - a lease is the pool's other half
            array = self.array
            self._pool._share(self._block)  # noqa: SLF001 - as above
        return Lease(self._pool, self._block, array)

    def release(self) -> None:
        with self._pool._returned:  # noqa: SLF001 - a lease is the pool's other half
            if self._array is None:
                raise InvalidInput("this buffer was returned twice; release each lease once")
            self._array = None
            self._pool._give_back(self._block)  # noqa: SLF001 - as above

    def __enter__(self) -> NDArray[Any]:
        return self.array

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(slots=True, eq=False)
class _Block:
    """One piece of memory; `wanted` is what the borrower asked for, `holders` how many leases."""

    memory: NDArray[np.uint8]
    wanted: int = 0
    holders: int = 0


class BufferPool:
    """Lends arrays from reused memory, inside a budget of `budget` bytes. Thread-safe.

    With the budget in use, `lease` waits up to `timeout` seconds (None: for ever, 0: not at all)
    and then raises `Overloaded`; a request that exceeds the whole budget raises
    `ConfigurationError` at once. Contents of a fresh lease are undefined.
    """

    def __init__(self, budget: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        if budget < _SMALLEST_BLOCK:
            raise ConfigurationError(f"a buffer pool needs at least {_SMALLEST_BLOCK} bytes, not {budget}")
        self._budget = budget
        self._clock = clock
        self._returned = threading.Condition()
        # Everything below is guarded by `_returned`.
        self._idle: defaultdict[int, list[_Block]] = defaultdict(list)
        self._allocated = self._peak = self._lent = self._wanted = self._open = 0
        self._counts: Counter[str] = Counter()

    def lease(self, shape: tuple[int, ...], dtype: DTypeLike, *, timeout: float | None = None) -> Lease:
        """Lend an array of `shape` and `dtype` with undefined contents.

        Raises `InvalidInput` for a negative side, and for a dtype that is not plain bytes.
        """
        dtype = np.dtype(dtype)
        if dtype.hasobject or not dtype.itemsize or any(side < 0 for side in shape):
            raise InvalidInput(f"memory cannot be lent as {dtype} of shape {shape}")
        wanted = math.prod(shape) * dtype.itemsize
        size = _size_class(wanted)
        if size > self._budget:
            raise ConfigurationError(
                f"a buffer of {wanted} bytes cannot fit a pool of {self._budget}; "
                "raise AI_MEMORY_POOL_SIZE or send smaller batches"
            )
        block = self._take(size, wanted, timeout)
        return Lease(self, block, block.memory[:wanted].view(dtype).reshape(shape))

    def statistics(self) -> PoolStatistics:
        with self._returned:
            return PoolStatistics(
                budget=self._budget,
                allocated=self._allocated,
                peak=self._peak,
                lent=self._lent,
                leases=self._open,
                leases_total=self._counts["leases"],
                allocations=self._counts["allocations"],
                reuses=self._counts["leases"] - self._counts["allocations"],
                fragmentation=1 - self._wanted / self._lent if self._lent else 0.0,
            )

    def trim(self) -> int:
        """Free every idle block; return how many bytes that gave back."""
        with self._returned:
            before = self._allocated
            self._evict(self._budget + 1)
            return before - self._allocated

    def _take(self, size: int, wanted: int, timeout: float | None) -> _Block:
        give_up = None if timeout is None else self._clock() + timeout
        with self._returned:
            while not (self._idle[size] or self._evict(size)):
                left = None if give_up is None else give_up - self._clock()
                if left is not None and left <= 0:
                    raise Overloaded(f"the buffer pool of {self._budget} bytes is in use", retry_after=0.1)
                self._returned.wait(left)
            block = self._idle[size].pop() if self._idle[size] else self._allocate(size)
            block.wanted, block.holders = wanted, 1
            self._lent += size
            self._wanted += wanted
            self._open += 1
            self._counts["leases"] += 1
            return block

    def _allocate(self, size: int) -> _Block:
        self._allocated += size
        self._peak = max(self._peak, self._allocated)
        self._counts["allocations"] += 1
        return _Block(np.empty(size, np.uint8))

    def _evict(self, room: int) -> bool:
        """Free idle blocks, the largest first, until `room` bytes fit; say whether they do."""
        for size in sorted(self._idle, reverse=True):
            while self._idle[size] and self._allocated + room > self._budget:
                self._idle[size].pop()
                self._allocated -= size
        return self._allocated + room <= self._budget

    def _share(self, block: _Block) -> None:
        """Count one more holder; the lease holds the lock."""
        block.holders += 1
        self._open += 1

    def _give_back(self, block: _Block) -> None:
        """Count one holder less, and take the block back from the last; the lease holds the lock."""
        self._open -= 1
        block.holders -= 1
        if block.holders:
            return
        self._lent -= block.memory.nbytes
        self._wanted -= block.wanted
        self._idle[block.memory.nbytes].append(block)
        self._returned.notify_all()


def _size_class(wanted: int) -> int:
    """Round up to the next of four steps per power of two."""
    if wanted <= _SMALLEST_BLOCK:
        return _SMALLEST_BLOCK
    step = (1 << (wanted - 1).bit_length() - 1) // _STEPS_PER_DOUBLING
    return -(-wanted // step) * step
