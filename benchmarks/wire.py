"""Which way should a batch go to the worker and its vectors come back?

Round trips between two processes, a request of token ids and masks for an answer of vectors: over
`Channel`; over `Channel` that reads into memory it had before; through shared memory (a memfd, one
half for each direction) of which only the place is told over a `Channel`, copied out by the reader
or read where it lies; and over `multiprocessing.Pipe`, pickled. The shared memory is at its best
here: nobody keeps account of which part of it is free again.

    python benchmarks/wire.py

Each side looks at every cache line of what it got. The first row is what the library really sends
when a batch is full: 16,384 tokens and 84 vectors of 384 numbers.
"""

from __future__ import annotations

import argparse
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness import Report, Timing, argument_parser, interleave, ratio
from resilient_ai._workers.channel import Channel, PeerGone
from resilient_ai._workers.wire import Frame, Kind

KB, MB = 1_000, 1_000_000
REAL = "80 kB, real"
SIZES: dict[str, tuple[int, tuple[int, int]]] = {
    REAL: (5 * 16_384, (84, 384)),
    "16 kB": (16 * KB, (32, 512)),
    "256 kB": (256 * KB, (32, 512)),
    "1 MB": (MB, (32, 512)),
    "8 MB": (8 * MB, (32, 512)),
}
"""Bytes of a request, and rows and columns of the float32 answer (64 kB, the real one 129 kB)."""

PER_SAMPLE = 4 * MB
MOST_TRIPS = 40
HALF = 16 << 20
CACHE_LINE = 64
LARGE = ("256 kB", "1 MB", "8 MB")
TENTH = 0.1

Arrays = dict[str, NDArray[Any]]


class End(Protocol):
    """One end of a way; both processes use the same class."""

    def send(self, arrays: Mapping[str, NDArray[Any]]) -> None: ...
    def receive(self) -> Mapping[str, NDArray[Any]]: ...
    def close(self) -> None: ...


class ChannelEnd:
    def __init__(self, handle: int, *, allocate: Callable[..., NDArray[Any]] = np.empty) -> None:
        self._channel = Channel(socket.socket(fileno=handle), allocate=allocate)
        self.close = self._channel.close

    def send(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._channel.send(Frame(Kind.RUN, 1, {"model": "m", "task": "embed"}, arrays))

    def receive(self) -> Mapping[str, NDArray[Any]]:
        frame = self._channel.receive()
        assert frame is not None
        return frame.arrays


class SameMemory:
    """Memory for arrays that gives the same again for the same shape: what a pool could do at best."""

    def __init__(self) -> None:
        self._arrays: dict[Any, NDArray[Any]] = {}

    def __call__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        if (shape, dtype) not in self._arrays:
            self._arrays[shape, dtype] = np.empty(shape, dtype)
        return self._arrays[shape, dtype]


class SharedEnd:
    """Writes into one half of a memfd, round and round, and reads from the other."""

    def __init__(self, handle: int, memory: int, *, is_host: bool, copies: bool) -> None:
        self._channel = Channel(socket.socket(fileno=handle))
        self._memory = mmap.mmap(memory, 2 * HALF)
        os.close(memory)
        whole = np.frombuffer(self._memory, np.uint8)
        halves = whole[:HALF], whole[HALF:]
        self._mine, self._theirs = halves if is_host else halves[::-1]
        self._copies = copies
        self._place = 0
        self.close = self._channel.close

    def send(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        size = sum(array.nbytes + CACHE_LINE for array in arrays.values())
        if self._place + size > HALF:
            self._place = 0
        places = [self._write(array) for array in arrays.values()]
        told = [
            [name, array.dtype.str, array.shape, place]
            for (name, array), place in zip(arrays.items(), places, strict=True)
        ]
        self._channel.send(Frame(Kind.RUN, 1, {"model": "m", "task": "embed", "shared": told}))

    def receive(self) -> Mapping[str, NDArray[Any]]:
        frame = self._channel.receive()
        assert frame is not None
        return {name: self._read(*told) for name, *told in frame.meta["shared"]}

    def _write(self, array: NDArray[Any]) -> int:
        place = self._place
        self._mine[place : place + array.nbytes].view(array.dtype)[:] = array.reshape(-1)
        self._place += -(-array.nbytes // CACHE_LINE) * CACHE_LINE
        return place

    def _read(self, code: str, shape: list[int], place: int) -> NDArray[Any]:
        dtype = np.dtype(code)
        size = int(np.prod(shape)) * dtype.itemsize
        array = self._theirs[place : place + size].view(dtype).reshape(shape)
        return array.copy() if self._copies else array


class PipeEnd:
    def __init__(self, handle: int) -> None:
        self._connection = Connection(handle)
        self.close = self._connection.close

    def send(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._connection.send((1, {"model": "m", "task": "embed"}, arrays))

    def receive(self) -> Mapping[str, NDArray[Any]]:
        got: Arrays = self._connection.recv()[2]
        return got


def build_end(way: str, handle: int, memory: int, *, is_host: bool) -> End:
    match way:
        case "channel":
            return ChannelEnd(handle)
        case "channel, same memory":
            return ChannelEnd(handle, allocate=SameMemory())
        case "pipe, pickled":
            return PipeEnd(handle)
        case "shared, copied out":
            return SharedEnd(handle, memory, is_host=is_host, copies=True)
        case "shared, in place":
            return SharedEnd(handle, memory, is_host=is_host, copies=False)
    raise ValueError(way)


WAYS = ("channel", "channel, same memory", "shared, copied out", "shared, in place", "pipe, pickled")


def look_at(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Read something of every cache line, as whoever uses an array would."""
    return sum(int(array.reshape(-1)[:: CACHE_LINE // array.itemsize].sum()) for array in arrays.values())


def make_request(size: int, seed: int) -> Arrays:
    tokens = size // 5
    rng = np.random.default_rng(seed)
    ids = rng.integers(1_000, 30_000, tokens, dtype=np.int32)
    return {"ids": ids.reshape(1, -1), "mask": np.ones((1, tokens), np.uint8)}


def make_answers() -> dict[tuple[int, int], Arrays]:
    rng = np.random.default_rng(0)
    shapes = {shape for _, shape in SIZES.values()}
    return {shape: {"values": rng.standard_normal(shape, np.float32)} for shape in shapes}


def serve(way: str, handle: int, memory: int) -> None:
    """The other process: answer until the host is gone. A request's size tells which answer it wants."""
    end, answers = build_end(way, handle, memory, is_host=False), make_answers()
    wanted = {size // 5: shape for size, shape in SIZES.values()}
    with suppress(PeerGone, EOFError):
        while True:
            request = end.receive()
            look_at(request)
            end.send(answers[wanted[request["ids"].size]])


@contextmanager
def start(way: str):
    """A process that answers, and this process's end of the way to it."""
    mine, theirs = socket.socketpair()
    memory = os.memfd_create(way)
    os.ftruncate(memory, 2 * HALF)
    handles = (theirs.fileno(), memory)
    command = [sys.executable, __file__, "--child", way, *map(str, handles)]
    with subprocess.Popen(command, pass_fds=handles) as process:
        theirs.close()
        end = build_end(way, mine.detach(), memory, is_host=True)
        try:
            yield end
        finally:
            end.close()
            process.wait(10)


def round_trips(end: End, request: Arrays, shape: tuple[int, int], times: int) -> Callable[[], None]:
    def go() -> None:
        for _ in range(times):
            end.send(request)
            values = end.receive()
            look_at(values)
            assert values["values"].shape == shape

    return go


def check(end: End, request: Arrays, shape: tuple[int, int]) -> None:
    """What comes back is what the other process has, to the bit."""
    end.send(request)
    assert np.array_equal(end.receive()["values"], make_answers()[shape]["values"])


def time_size(ends: Mapping[str, End], name: str, *, rounds: int, seed: int) -> dict[str, Timing]:
    """Seconds of one round trip."""
    size, shape = SIZES[name]
    request, times = make_request(size, seed), max(2, min(MOST_TRIPS, PER_SAMPLE // size))
    for end in ends.values():
        check(end, request, shape)
    work = {way: round_trips(end, request, shape, times) for way, end in ends.items()}
    timings = interleave(work, rounds=rounds, warm_up=3)
    return {
        way: Timing(way, tuple(taken / times for taken in timing.seconds)) for way, timing in timings.items()
    }


def show(report: Report, name: str, timings: Mapping[str, Timing]) -> None:
    size, (rows, columns) = SIZES[name]
    report.table(
        f"{size / KB:,.0f} kB there, {rows * columns * 4 / KB:,.0f} kB back",
        [
            {
                "way": way,
                "median us": timing.median * 1e6,
                "best us": timing.best * 1e6,
                "spread": timing.spread,
                "times the channel's": ratio(timing, timings["channel"]),
            }
            for way, timing in timings.items()
        ],
    )


def judge(report: Report, timings: Mapping[str, Mapping[str, Timing]]) -> None:
    gains = {name: ratio(ways["pipe, pickled"], ways["channel"]) for name, ways in timings.items()}
    found = ", ".join(f"{name} {gain:.2f} times as fast" for name, gain in gains.items())
    report.verdict(
        "large batches travel faster over the channel than pickled",
        kept=min(gains[name] for name in LARGE) > 1,
        found=found,
    )
    shared = {name: ratio(ways["shared, copied out"], ways["channel"]) for name, ways in timings.items()}
    report.verdict(
        "for what the library sends, shared memory would save less than a tenth",
        kept=shared[REAL] > 1 - TENTH,
        found=", ".join(f"{name} {share:.2f} times as long" for name, share in shared.items()),
    )


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=101, help="timed rounds (default 101)")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "SOCKET", "MEMORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, handle, memory = options.child
        serve(way, int(handle), int(memory))
        return 0
    report = Report("wire", as_json=options.json)
    with ExitStack() as stack:
        ends = {way: stack.enter_context(start(way)) for way in WAYS}
        timings = {name: time_size(ends, name, rounds=options.rounds, seed=options.seed) for name in SIZES}
    for name, ways in timings.items():
        show(report, name, ways)
    judge(report, timings)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
