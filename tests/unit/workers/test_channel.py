"""Channels over real sockets: whole frames, in time, from many threads, until one side ends."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from resilient_ai._resilience.failures import Classifier, FailureClass
from resilient_ai._workers.channel import Channel, PeerGone, SendStalled
from resilient_ai._workers.wire import Frame, Kind, ProtocolError, encode
from resilient_ai.errors import DeviceFailed
from wire_kit import CountedMemory, assert_same, header

MB = 1 << 20
LONG = 30.0  # what never passes in a test that passes
SHORT = 0.02


def frame_of(size, *, request=1, value=7):
    return Frame(Kind.RUN, request, {"model": "m"}, {"values": np.full(size, value, np.uint8)})


SMALL, LARGE = frame_of(100), frame_of(8 * MB)


@pytest.fixture
def ends():
    """Two connected channels."""
    one, other = (Channel(sock) for sock in socket.socketpair())
    yield one, other
    one.close()
    other.close()


@contextmanager
def raw_end(sock_type=socket.socket, **options):
    """A channel and the bare socket at its other end."""
    mine, theirs = socket.socketpair()
    channel = Channel(sock_type(fileno=mine.detach()), **options)
    with theirs:
        yield channel, theirs
        channel.close()


class Waiting:
    """A clock that tells when it is looked at for the last time before a channel waits.

    A receiver looks when it begins and before it waits; a sender also before it stands in line.
    """

    RECEIVE, SEND = 2, 3

    def __init__(self, looks):
        self.begun = threading.Event()
        self._left = looks

    def __call__(self):
        self._left -= 1
        if self._left == 0:
            self.begun.set()
        return time.monotonic()


@contextmanager
def in_thread(work, *args, **options):
    """Work in a thread of its own; the outcome as a future."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work, *args, **options)


def receive_all(channel, count):
    return [channel.receive(LONG) for _ in range(count)]


# -- frames --------------------------------------------------------------------------------------------


def test_frames_go_both_ways(ends):
    """What one side sends the other receives, in order, and the other way round."""
    one, other = ends
    for sender, receiver in (ends, (other, one)):
        sent = [SMALL, Frame(Kind.STOP, 2), frame_of(0, request=3)]
        for frame in sent:
            sender.send(frame)
        for frame, got in zip(sent, receive_all(receiver, 3), strict=True):
            assert_same(got, frame)


def test_a_small_frame_is_one_call():
    """A frame that fits goes out in one system call, and comes in with one for each part, none to wait."""

    class Counted(socket.socket):
        sends = reads = 0

        def sendmsg(self, *args):
            self.sends += 1
            return super().sendmsg(*args)

        def recv_into(self, *args):
            self.reads += 1
            return super().recv_into(*args)

    one, other = (Counted(fileno=sock.detach()) for sock in socket.socketpair())
    sender, receiver = Channel(one), Channel(other)
    sender.send(SMALL)
    assert_same(receiver.receive(LONG), SMALL)
    assert (one.sends, other.reads) == (1, len(["header", "meta", "array", "seal"]))
    sender.close()
    receiver.close()


def test_arrays_come_in_the_memory_that_was_given():
    """What `allocate` gave is what the frame has, filled in place."""
    memory = CountedMemory()
    with raw_end(allocate=memory) as (channel, theirs):
        theirs.sendall(b"".join(encode(SMALL)))
        assert channel.receive(LONG).arrays["values"] is memory.taken[0]


def test_a_slow_reader_gets_it_all(ends):
    """A frame that goes out piece by piece arrives whole."""
    one, other = ends
    frame = Frame(Kind.RUN, 1, {}, {name: np.arange(MB, dtype=np.int32) for name in "abc"})
    with in_thread(one.send, frame, timeout=LONG) as sent:
        assert_same(other.receive(LONG), frame)
        assert sent.result(LONG) is None


def test_a_frame_that_the_wire_does_not_carry(ends):
    """It is refused before a byte of it is sent, so the next one arrives."""
    one, other = ends
    with pytest.raises(TypeError):
        one.send(Frame(Kind.RUN, 1, {}, {"values": np.zeros(3, np.float64)}))
    one.send(SMALL)
    assert_same(other.receive(LONG), SMALL)


@pytest.mark.parametrize("size", [100, 300_000])
def test_many_threads_send_whole_frames(ends, size):
    """Frames of eight threads arrive whole, each thread's in its order."""
    one, other = ends
    threads, each = 8, 20
    barrier = threading.Barrier(threads)

    def send_all(who):
        barrier.wait()
        for number in range(each):
            one.send(frame_of(size + who, request=who * 1000 + number, value=who), timeout=LONG)

    with ThreadPoolExecutor(threads) as pool:
        sent = [pool.submit(send_all, who) for who in range(threads)]
        got = receive_all(other, threads * each)
        for future in sent:
            future.result(LONG)
    for who in range(threads):
        mine = [frame for frame in got if frame.id // 1000 == who]
        assert [frame.id % 1000 for frame in mine] == list(range(each))
        assert all(np.array_equal(frame.arrays["values"], np.full(size + who, who)) for frame in mine)


def test_large_frames_cross(ends):
    """Both sides send eight megabytes at once and receive meanwhile; neither holds up the other."""
    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(end.send, LARGE, timeout=LONG) for end in ends]
        got = [pool.submit(end.receive, LONG) for end in ends]
        assert [future.result(LONG) for future in sent] == [None, None]
        for future in got:
            assert_same(future.result(LONG), LARGE)


# -- time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.0, -1, SHORT])
def test_nothing_comes(ends, timeout):
    """When time is up before anything came there is no frame, and no error."""
    assert ends[0].receive(timeout) is None


def test_waiting_is_left_to_the_system():
    """Who waits in vain looks at the clock when it begins, before it waits and after, not all the time."""
    looks = []

    def clock():
        looks.append(time.monotonic())
        return looks[-1]

    with raw_end(clock=clock) as (channel, _):
        assert channel.receive(SHORT) is None
    assert looks[-1] >= looks[0] + SHORT
    assert len(looks) < 6


@pytest.mark.parametrize("timeout", [0, -1, SHORT, 1e12, math.inf, None])
def test_what_is_there_is_taken_whatever_the_time(ends, timeout):
    """A frame that is there is received, and one that fits is sent, even if there is no time at all."""
    one, other = ends
    one.send(SMALL, timeout=timeout)
    assert_same(other.receive(timeout), SMALL)


@pytest.mark.parametrize("timeout", [LONG, 1e12, math.inf, None])
def test_a_wait_ends_when_a_frame_comes(timeout):
    """However long a receiver may wait, it returns with the frame as soon as that is there."""
    clock = Waiting(Waiting.RECEIVE)
    with raw_end(clock=clock) as (channel, theirs), in_thread(channel.receive, timeout) as got:
        assert clock.begun.wait(LONG)
        theirs.sendall(b"".join(encode(SMALL)))
        assert_same(got.result(LONG), SMALL)


def test_a_frame_in_parts_is_gone_on_with():
    """Receiving stops and goes on at any byte of a frame, and what comes next is not touched."""
    data = b"".join(encode(SMALL))
    with raw_end() as (channel, theirs):
        for place in range(len(data) - 1):
            theirs.sendall(data[place : place + 1])
            assert channel.receive(0) is None
        theirs.sendall(data[-1:] + data[:5])
        assert_same(channel.receive(0), SMALL)
        assert channel.receive(0) is None
        theirs.sendall(data[5:])
        assert_same(channel.receive(0), SMALL)


def test_a_trickle_does_not_gain_time():
    """Bytes that keep coming do not move the end of the wait."""
    stop = threading.Event()

    def trickle(theirs):
        while not stop.wait(SHORT / 20):
            theirs.sendall(b"\x20")

    with raw_end() as (channel, theirs):
        theirs.sendall(header(MB))
        with in_thread(trickle, theirs) as trickling:
            try:
                assert channel.receive(SHORT) is None
            finally:
                stop.set()
            trickling.result(LONG)


def test_nobody_reads(ends):
    """A large frame that nobody reads is given up in time, half sent; after that nothing is sent at all."""
    one, other = ends
    with pytest.raises(SendStalled, match="a part"):
        one.send(LARGE, timeout=SHORT)
    assert other.receive(0) is None  # makes room, but not for another frame inside that one
    with pytest.raises(SendStalled, match="earlier frame"):
        one.send(SMALL, timeout=LONG)
    other.send(SMALL)
    assert_same(one.receive(LONG), SMALL)


def test_both_send_and_nobody_reads(ends):
    """Two sides that both wait for the other to read are not stuck for good: both are told in time."""
    with ThreadPoolExecutor(2) as pool:
        for sent in [pool.submit(end.send, LARGE, timeout=SHORT) for end in ends]:
            assert isinstance(sent.exception(LONG), SendStalled)


def test_a_frame_that_was_not_begun_may_be_sent_later(ends):
    """Where there was room for no part of a frame, the stream is in step, and goes on once there is."""
    one, other = ends
    sent = 0

    def fill():
        nonlocal sent
        while True:
            one.send(SMALL, timeout=0)
            sent += 1

    with pytest.raises(SendStalled, match="nothing"):
        fill()
    receive_all(other, sent)
    assert other.receive(0) is None
    one.send(SMALL, timeout=0)
    assert_same(other.receive(0), SMALL)


def test_waiting_for_another_threads_frame():
    """A frame behind another one that is not taken is given up in its own time; that one may still arrive."""
    clock = Waiting(Waiting.SEND)
    with raw_end(clock=clock) as (channel, theirs):
        reader = Channel(theirs)
        with in_thread(channel.send, LARGE, timeout=LONG) as sent:
            assert clock.begun.wait(LONG)
            with pytest.raises(SendStalled, match="before this one"):
                channel.send(SMALL, timeout=SHORT)
            assert_same(reader.receive(LONG), LARGE)
            assert sent.result(LONG) is None
        channel.send(SMALL)
        assert_same(reader.receive(LONG), SMALL)


# -- the other side ends --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "words"), [(b"", "between two frames"), (b"R", "inside a frame"), (header(), "inside a frame")]
)
def test_the_stream_ends(last, words):
    """What came before the end is received; then, as often as one asks, how it ended."""
    with raw_end() as (channel, theirs):
        theirs.sendall(b"".join(encode(SMALL)) + last)
        theirs.close()
        assert_same(channel.receive(LONG), SMALL)
        for _ in range(2):
            with pytest.raises(PeerGone, match=words):
                channel.receive(None)


def test_the_other_side_ends_while_one_waits():
    """A receiver that waits without limit hears of the end."""
    clock = Waiting(Waiting.RECEIVE)
    with raw_end(clock=clock) as (channel, theirs), in_thread(channel.receive) as got:
        assert clock.begun.wait(LONG)
        theirs.close()
        assert isinstance(got.exception(LONG), PeerGone)


def test_the_other_side_ends_while_one_sends():
    """A sender in the middle of a frame hears of the end; so does each one after it."""
    clock = Waiting(Waiting.SEND)
    with raw_end(clock=clock) as (channel, theirs):
        with in_thread(channel.send, LARGE) as sent:
            assert clock.begun.wait(LONG)
            theirs.close()
            assert isinstance(sent.exception(LONG), PeerGone)
        with pytest.raises(PeerGone):
            channel.send(SMALL, timeout=0)


def test_the_other_side_ends_with_frames_unread():
    """An end that the system calls a reset is the other side's end all the same."""
    with raw_end() as (channel, theirs):
        channel.send(SMALL)
        theirs.close()
        with pytest.raises(PeerGone, match="reset"):
            channel.receive(LONG)
        with pytest.raises(PeerGone, match="Broken pipe"):
            channel.send(SMALL)


def test_the_end_is_classified():
    """`PeerGone` reads as a worker that died, and blames the device, as `SendStalled` does."""
    with raw_end() as (channel, theirs):
        theirs.close()
        with pytest.raises(PeerGone) as caught:
            channel.receive(0)
    assert Classifier().classify(caught.value).failure_class is FailureClass.WORKER_DIED
    assert issubclass(PeerGone, DeviceFailed)
    assert issubclass(SendStalled, DeviceFailed)


# -- this side ends -------------------------------------------------------------------------------------


def test_closing_ends_both_sides(ends):
    """After closing, twice, nothing is received, not even what is there; the other side hears of it."""
    one, other = ends
    other.send(SMALL)
    one.close()
    one.close()
    for use in (lambda: one.receive(0), lambda: one.send(SMALL), lambda: one.send_raw(b"x")):
        with pytest.raises(PeerGone, match="this side closed"):
            use()
    assert one.fileno() == -1
    with pytest.raises(PeerGone):
        other.receive(LONG)


@pytest.mark.parametrize(
    ("use", "looks"),
    [(Channel.receive, Waiting.RECEIVE), (lambda channel: channel.send(LARGE), Waiting.SEND)],
    ids=["receive", "send"],
)
def test_closing_wakes_who_waits(use, looks):
    """A thread that waits, without limit, to receive or to send ends at once, and the handle is given back."""
    clock = Waiting(looks)
    with raw_end(clock=clock) as (channel, _), in_thread(use, channel) as used:
        assert clock.begun.wait(LONG)
        channel.close()
        assert isinstance(used.exception(LONG), PeerGone)
        assert channel.fileno() == -1


def test_closing_wakes_who_stands_in_line():
    """Threads that wait for another one's frame to go out are told as well."""
    clock = Waiting(Waiting.SEND)
    with raw_end(clock=clock) as (channel, _), ThreadPoolExecutor(4) as pool:
        uses = [pool.submit(channel.send, LARGE) for _ in range(4)]
        assert clock.begun.wait(LONG)
        channel.close()
        assert [type(use.exception(LONG)) for use in uses] == [PeerGone] * 4
        assert channel.fileno() == -1


def test_closing_waits_for_nobody():
    """It returns while a thread is inside; that thread gives the handle back when it leaves."""
    inside, go_on = threading.Event(), threading.Event()

    def allocate(shape, dtype):
        inside.set()
        assert go_on.wait(LONG)
        return np.empty(shape, dtype)

    with raw_end(allocate=allocate) as (channel, theirs), in_thread(channel.receive, LONG) as got:
        theirs.sendall(b"".join(encode(frame_of(5)))[:-1])
        assert inside.wait(LONG)
        channel.close()
        assert channel.fileno() >= 0
        go_on.set()
        assert isinstance(got.exception(LONG), PeerGone)
        assert channel.fileno() == -1


# -- nonsense and interrupts ----------------------------------------------------------------------------


def test_garbage(ends):
    """Bytes that are no frame are refused, and so is all that follows; this side may still send."""
    one, other = ends
    one.send_raw(b"Traceback (most recent call last):\n")
    one.send(SMALL)
    for _ in range(2):
        with pytest.raises(ProtocolError):
            other.receive(LONG)
    other.send(SMALL)
    assert_same(one.receive(LONG), SMALL)


def test_memory_that_is_not_given():
    """When there is no memory for an array the receiver is told, and the frame's rest is not taken for a frame."""

    def allocate(_shape, _dtype):
        raise MemoryError

    with raw_end(allocate=allocate) as (channel, theirs):
        theirs.sendall(b"".join(encode(SMALL)) * 2)
        with pytest.raises(MemoryError):
            channel.receive(LONG)
        with pytest.raises(ProtocolError, match="out of step"):
            channel.receive(LONG)


class Interrupted(socket.socket):
    """A socket whose first call, once `armed`, is interrupted when it has done its work."""

    armed = False

    def _interrupt(self):
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt

    def sendmsg(self, *args):
        count = super().sendmsg(*args)
        self._interrupt()
        return count

    def recv_into(self, *args):
        count = super().recv_into(*args)
        self._interrupt()
        return count


def test_an_interrupted_receive_delivers_nothing_wrong():
    """Where an interrupt made bytes go missing, the next receiver is told, not given a frame without them."""
    with raw_end(Interrupted) as (channel, theirs):
        theirs.sendall(b"".join(encode(SMALL)))
        channel._sock.armed = True
        with pytest.raises(KeyboardInterrupt):
            channel.receive(LONG)
        with pytest.raises(ProtocolError, match="out of step"):
            channel.receive(LONG)


def test_an_interrupted_send_is_not_gone_on_with():
    """Where an interrupt may have left part of a frame in the stream, no other is sent after it."""
    with raw_end(Interrupted) as (channel, _):
        channel._sock.armed = True
        with pytest.raises(KeyboardInterrupt):
            channel.send(LARGE)
        with pytest.raises(SendStalled, match="earlier frame"):
            channel.send(SMALL)


# -- other processes -------------------------------------------------------------------------------------


def run_script(script):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_broken_pipe_is_no_death():
    """A program that lets SIGPIPE kill it, as command line tools do, survives the end of the other side."""
    run_script("""
    import signal, socket
    from resilient_ai._workers.channel import Channel, PeerGone
    from resilient_ai._workers.wire import Frame, Kind
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    mine, theirs = socket.socketpair()
    channel = Channel(mine)
    theirs.close()
    try:
        channel.send(Frame(Kind.STOP))
    except PeerGone:
        channel.close()
    """)


@pytest.mark.slow
def test_a_fork_may_close_its_copy():
    """A forked process closes its copy at once, even of a channel in use, and the original goes on."""
    run_script("""
    import os, socket, threading, warnings
    from resilient_ai._workers.channel import Channel
    from resilient_ai._workers.wire import Frame, Kind
    warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
    mine, theirs = (Channel(sock) for sock in socket.socketpair())
    held = threading.Event()
    got = []
    thread = threading.Thread(target=lambda: (held.set(), got.append(mine.receive(30))))
    thread.start()
    held.wait()
    with mine._lock:
        pid = os.fork()
        if pid == 0:
            mine.close()
            os._exit(0 if mine.fileno() == -1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    theirs.send(Frame(Kind.READY, 5))
    thread.join(30)
    assert got[0].id == 5
    """)
