"""The asynchronous face: loops and threads share one service, and nothing blocks a loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from resilient_ai import AsyncAIService
from resilient_ai.errors import DeadlineExceeded, InvalidInput, ServiceClosed
from resilient_ai.testing import FakeBackend
from serving_kit import DIMENSION, EMBEDDER, fake_service, right_vectors

WAIT = 20


@pytest.fixture
def make(tmp_path):
    return lambda backend=None, **values: fake_service(tmp_path, backend, kind=AsyncAIService, **values)


def expected(texts):
    return right_vectors(texts, model=EMBEDDER.name)


def run(work):
    return asyncio.run(asyncio.wait_for(work, WAIT))


class Gate:
    """A backend hook that holds batches back until it is opened."""

    def __init__(self):
        self.open, self.running = threading.Event(), threading.Event()

    def __call__(self, _):
        self.running.set()
        self.open.wait(WAIT)


async def until(event):
    assert await asyncio.to_thread(event.wait, WAIT)


def test_the_same_answers(make):
    """Every call gives what the synchronous face gives."""

    async def work():
        async with make() as ai:
            await ai.load()
            np.testing.assert_array_equal((await ai.embed(["a", "b"])).vectors, expected(["a", "b"]))
            query = await ai.embed_query("a")
            np.testing.assert_array_equal(query, expected(["Instruct: find it Query: a"])[0])
            np.testing.assert_array_equal(await ai.embed_documents(["a"]), expected(["a"]))
            assert len(await ai.rerank("q", ["a", "b"], top_k=1)) == 1
            assert ai.health().ready
            assert (await ai.embed([])).vectors.shape == (0, DIMENSION)
        with pytest.raises(ServiceClosed):
            await ai.embed(["a"])

    run(work())


def test_the_loop_is_not_blocked(make):
    """While the device works the loop goes on, and many tasks share few batches."""
    gate = Gate()
    backend = FakeBackend("cpu", DIMENSION, before=gate)

    async def work():
        async with make(backend) as ai:
            await ai.load()
            tasks = [asyncio.ensure_future(ai.embed([f"text {n}"])) for n in range(200)]
            await until(gate.running)
            gate.open.set()
            answers = await asyncio.gather(*tasks)
            np.testing.assert_array_equal(
                np.concatenate([answer.vectors for answer in answers]),
                expected([f"text {n}" for n in range(200)]),
            )

    run(work())
    assert len(backend.calls) < 20


def test_a_cancelled_task_withdraws_its_call(make):
    """A task that is cancelled while it waits costs no device time; its neighbours get their answers."""
    gate = Gate()
    backend = FakeBackend("cpu", DIMENSION, before=gate)

    async def work():
        async with make(backend) as ai:
            await ai.load()
            first = asyncio.ensure_future(ai.embed(["first"]))
            await until(gate.running)
            gone, stays = (asyncio.ensure_future(ai.embed([text])) for text in ("gone", "stays"))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.wait([gone])
            assert gone.cancelled()
            gate.open.set()
            np.testing.assert_array_equal((await stays).vectors, expected(["stays"]))
            await first

    run(work())
    assert sum(batch.rows for batch in backend.calls) == 2


def test_timeouts_of_asyncio_and_of_the_call(make):
    """Both ways to limit a call end it; neither disturbs the next one."""
    gate = Gate()

    async def work():
        async with make(FakeBackend("cpu", DIMENSION, before=gate)) as ai:
            await ai.load()
            with pytest.raises(DeadlineExceeded):
                await ai.embed(["a"], timeout=0.02)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ai.embed(["b"]), 0.02)
            gate.open.set()
            np.testing.assert_array_equal((await ai.embed(["c"])).vectors, expected(["c"]))

    run(work())


def test_loops_and_threads_at_once(make):
    """Two loops and several threads share one service; each caller gets its own answers."""
    ai = make()

    async def loop(number):
        texts = [[f"loop {number} text {n}"] for n in range(100)]
        answers = await asyncio.gather(*(ai.embed(each) for each in texts))
        for each, answer in zip(texts, answers, strict=True):
            np.testing.assert_array_equal(answer.vectors, expected(each))

    def thread(number):
        for n in range(30):
            np.testing.assert_array_equal(
                ai._service.embed([f"thread {number} {n}"]).vectors, expected([f"thread {number} {n}"])
            )

    with ThreadPoolExecutor(6) as threads:
        work = [threads.submit(run, loop(n)) for n in range(2)] + [
            threads.submit(thread, n) for n in range(4)
        ]
        for future in work:
            future.result(WAIT)
    asyncio.run(ai.close())


def test_bad_arguments(make):
    """Wrong arguments are told when the call is awaited."""

    async def work():
        async with make() as ai:
            for bad in (
                ai.embed("text"),
                ai.embed([None]),
                ai.embed_query(b"x"),
                ai.embed(["a"], timeout=float("nan")),
                ai.rerank("q", ["a"], top_k=0),
            ):
                with pytest.raises(InvalidInput):
                    await bad
            for stream in (
                ai.embed_stream("text"),
                ai.embed_stream(["a"], chunk_size=0),
                ai.embed_stream([5]),
            ):
                with pytest.raises(InvalidInput):
                    await anext(stream)

    run(work())


def test_streams(make):
    """Plain and asynchronous iterables stream in order, one chunk ahead; errors of the source come through."""
    texts = [f"{n}" for n in range(105)]

    async def source(fail_at=None):
        for n, text in enumerate(texts):
            if n == fail_at:
                raise KeyError("mine")
            await asyncio.sleep(0)
            yield text

    async def work():
        async with make() as ai:
            for each in (texts, source()):
                parts = [part async for part in ai.embed_stream(each, chunk_size=10)]
                assert [len(part) for part in parts] == [10] * 10 + [5]
                np.testing.assert_array_equal(
                    np.concatenate([part.vectors for part in parts]), expected(texts)
                )
            assert [part async for part in ai.embed_stream([])] == []
            with pytest.raises(KeyError, match="mine"):
                [part async for part in ai.embed_stream(source(fail_at=35), chunk_size=10)]

    run(work())


def test_a_stream_that_is_left(make):
    """Leaving a stream early cancels what is under way, and reads no more of the source."""
    read = []

    def source():
        for n in range(1000):
            read.append(n)
            yield f"{n}"

    async def work():
        async with make() as ai:
            stream = ai.embed_stream(source(), chunk_size=10)
            async for part in stream:
                assert len(part) == 10
                break
            await stream.aclose()
            assert len(read) <= 30
            await ai.embed(["after"])

    run(work())


def test_a_loop_that_is_gone(make):
    """An answer for a loop that was closed meanwhile is dropped; the service goes on for others."""
    gate = Gate()
    ai = make(FakeBackend("cpu", DIMENSION, before=gate))

    async def leave():
        asyncio.ensure_future(ai.embed(["a"]))  # noqa: RUF006 - nobody waits for it, that is the point
        await until(gate.running)

    asyncio.run(leave())
    gate.open.set()
    np.testing.assert_array_equal(ai._service.embed(["b"]).vectors, expected(["b"]))
    asyncio.run(ai.close())
