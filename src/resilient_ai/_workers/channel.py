"""Whole frames over a stream socket: each within its time, none begun inside another.

The socket does not block; waiting is `poll`'s, and only when there is nothing to do. What goes out
is gathered by `sendmsg` from where it lies, what comes in is read to where it belongs.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import numpy as np

from resilient_ai._workers.wire import Allocate, Decoder, Frame, ProtocolError, encode
from resilient_ai.errors import DeviceFailed

__all__ = ["Channel", "PeerGone", "SendStalled"]

# Bytes that the system keeps until they are read; it may allow less. A round trip of 256 kB to 1 MB was
# 15 to 20 % shorter than with the default of 208 kB.
_SEND_BUFFER: Final = 1 << 20
_LONGEST_WAIT: Final = 1e6  # seconds; `poll` counts milliseconds in 31 bits, and nobody waits for so long


class PeerGone(DeviceFailed):
    """Raised when the other side has ended, or this side has closed the channel."""


class SendStalled(DeviceFailed):
    """Raised when the other side did not take a frame in time; close the channel then.

    If a part of it went, nothing more can be sent.
    """


class Channel:
    """Frames to and from the process at the other end of `sock`, which becomes non-blocking.

    `send` and `close` may be called from any thread, at any time; `receive` by one thread at a time.
    Arrays come in memory that `allocate` gives. Times are seconds; None waits as long as it takes.

    In a process forked from the one that made it, a channel can only be closed; that does not disturb
    the other one's.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        allocate: Allocate = np.empty,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._sock = sock
        self._clock = clock
        self._decoder = Decoder(allocate)
        # Two, because threads that wait at once cannot share one.
        self._readable, self._writable = _poll(sock, select.POLLIN), _poll(sock, select.POLLOUT)
        # Held while a frame goes out: the one lock here that is held over I/O, which `due` bounds.
        self._sending = threading.Lock()
        self._is_torn = False  # a frame went out in part; guarded by `_sending`
        self._is_unsure = False  # bytes came in that the decoder has not been told of
        # Re-entrant, since a signal handler may close the channel under the very thread that uses it.
        self._lock = threading.RLock()
        self._users = 0  # threads inside; guarded by `_lock`, as is
        self._is_closed = False
        self._owner = os.getpid()

    def fileno(self) -> int:
        """The socket's handle, -1 once it is closed."""
        return self._sock.fileno()

    def send(self, frame: Frame, *, timeout: float | None = None) -> None:
        """Send a frame; its arrays may be written to again when this returns.

        Raises:
            PeerGone: There is nobody to take it.
            SendStalled: It was not taken in time, or one before it was not.
            ProtocolError, TypeError: The wire does not carry such a frame; nothing was sent.
        """
        self._send(encode(frame), timeout)

    def send_raw(self, data: bytes) -> None:
        """Send bytes that may be no frame: for faults on purpose."""
        self._send([memoryview(data)], None)

    def receive(self, timeout: float | None = None) -> Frame | None:
        """The next frame, or None when time is up before it is complete; the next call goes on with it.

        With a timeout of 0 only what is there is taken.

        Raises:
            PeerGone: The stream has ended, or `close` was called, also while this waited.
            ProtocolError: What came is no frame. Nothing after it can be read.
        """
        due = self._due(timeout)
        self._enter()
        try:
            return self._receive(due)
        finally:
            self._leave()

    def close(self) -> None:
        """End the stream for both sides; threads that send or receive here get `PeerGone` at once.

        Never blocks, and may be called again. The handle is given back by the last thread that leaves.
        """
        if os.getpid() != self._owner:
            # A shutdown would reach the original, and locks may be held by threads that are not here.
            self._sock.close()
            return
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                with suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
            is_idle = self._users == 0
        if is_idle:
            self._sock.close()

    # -- threads inside ----------------------------------------------------------------------------

    def _enter(self) -> None:
        with self._lock:
            if self._is_closed:
                raise self._gone("")
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            is_last = self._is_closed and self._users == 0
        if is_last:
            self._sock.close()

    # -- going out ---------------------------------------------------------------------------------

    def _send(self, buffers: list[memoryview], timeout: float | None) -> None:
        due = self._due(timeout)
        self._enter()
        try:
            if not self._sending.acquire(timeout=self._left(due)):
                raise SendStalled("the other side still takes the frame before this one; close the channel")
            try:
                self._put(buffers, due)
            finally:
                self._sending.release()
        finally:
            self._leave()

    def _put(self, buffers: list[memoryview], due: float) -> None:
        if self._is_torn:
            raise SendStalled("the other side took only a part of an earlier frame; close the channel")
        # Until the contrary is known, since an interrupt may come after any step.
        self._is_torn = True
        left = buffers
        while left:
            sent = self._try_send(left)
            if sent:
                left = _after(left, sent)
            elif not self._wait(self._writable, due):
                self._is_torn = left is not buffers
                taken = "only a part" if self._is_torn else "nothing"
                raise SendStalled(f"the other side took {taken} of a frame in time; close the channel")
        self._is_torn = False

    def _try_send(self, buffers: list[memoryview]) -> int:
        """Send what goes without waiting; the number of bytes."""
        try:
            # NOSIGNAL: a program may have given SIGPIPE back its default, which is to die of it.
            return self._sock.sendmsg(buffers, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as exc:
            self._is_torn = False  # there is no stream any more that could be torn
            raise self._gone(str(exc)) from exc

    # -- coming in ---------------------------------------------------------------------------------

    def _receive(self, due: float) -> Frame | None:
        if self._is_unsure:
            raise ProtocolError("the stream is out of step: an earlier frame could not be read")
        while True:
            target = self._decoder.wanted()
            self._is_unsure = True
            count = self._try_receive(target)
            frame = self._decoder.advance(count) if count else None
            self._is_unsure = False
            if frame is not None:
                return frame
            # Less than was wanted is all there was: trying once more would only tell that again.
            if count < len(target) and not self._wait(self._readable, due):
                return None

    def _try_receive(self, target: memoryview) -> int:
        """Read what is there into `target`; the number of bytes."""
        try:
            count = self._sock.recv_into(target)
        except BlockingIOError:
            return 0
        except OSError as exc:
            self._is_unsure = False
            raise self._gone(str(exc)) from exc
        if count == 0:
            self._is_unsure = False
            where = "between two frames" if self._decoder.is_between_frames else "inside a frame"
            raise self._gone(f"its stream ended {where}")
        return count

    def _gone(self, how: str) -> PeerGone:
        """The error; the words are those that the patterns of failures look for."""
        return PeerGone(f"the worker is gone: {'this side closed the channel' if self._is_closed else how}")

    # -- time --------------------------------------------------------------------------------------

    def _due(self, timeout: float | None) -> float:
        return self._clock() + (math.inf if timeout is None else timeout)

    def _left(self, due: float) -> float:
        return min(max(0.0, due - self._clock()), _LONGEST_WAIT)

    def _wait(self, poll: select.poll, due: float) -> bool:
        """Wait until trying is worth while: something can be done, or time is just up; False after that."""
        left = self._left(due)
        if left == 0:
            return False
        poll.poll(left * 1e3)
        return True


def _poll(sock: socket.socket, event: int) -> select.poll:
    poll = select.poll()
    poll.register(sock, event)
    return poll


def _after(buffers: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of buffers when so many bytes of them have gone."""
    for place, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [buffer[sent:], *buffers[place + 1 :]]
        sent -= len(buffer)
    return []
