"""Bodies are bounded: each one, all together, and in time."""

from __future__ import annotations

import asyncio
import json

import pytest
from http_kit import connected
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from resilient_ai._adapters.http.bodies import BodyReader
from resilient_ai.errors import Overloaded


def request_of(*chunks, length=None, expect=None, then=None):
    """A request whose body arrives in these chunks; `then` is awaited before the last of them."""
    waiting = list(chunks)
    taken = []

    async def receive():
        if len(waiting) == 1 and then is not None:
            await then()
        if not waiting:
            return {"type": "http.disconnect"}
        chunk = waiting.pop(0)
        taken.append(chunk)
        return {"type": "http.request", "body": chunk, "more_body": bool(waiting)}

    given = {"content-length": length, "expect": expect}
    headers = [(name.encode(), str(value).encode()) for name, value in given.items() if value is not None]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b""}
    request = Request(scope, receive)
    request.taken = taken
    return request


async def read(bodies, request):
    async with bodies.reading(request) as body:
        return bytes(body)


def test_chunks_become_one_body():
    """A body is its chunks in order, held until its request is answered."""

    async def run():
        bodies = BodyReader(largest=10)
        async with bodies.reading(request_of(b"hello", b"", b"world")) as body:
            assert bytes(body) == b"helloworld"
            assert bodies.held == 10
        return bodies.held

    assert asyncio.run(run()) == 0


@pytest.mark.parametrize("length", [11, "9" * 5000])
def test_a_length_is_refused_by_its_announcement(length):
    """A body that says it is too large is refused without any of it being kept."""
    bodies = BodyReader(largest=10, budget=0)
    with pytest.raises(HTTPException) as caught:
        asyncio.run(read(bodies, request_of(b"x" * 11, length=length)))
    assert (caught.value.status_code, caught.value.headers) == (413, {"Connection": "close"})


def test_who_asks_before_sending_is_answered_at_once():
    """A client that expects an answer before it sends too much is not asked to send it."""
    request = request_of(b"x" * 11, length=11, expect="100-continue")
    with pytest.raises(HTTPException):
        asyncio.run(read(BodyReader(largest=10), request))
    assert request.taken == []


def test_a_refused_body_is_read_for_a_while():
    """What is too large is taken in and dropped, four times the largest and no more, so that its sender can read why."""
    bodies = BodyReader(largest=10)
    for chunks, read_of_them in ((5, 5), (100, 14)):
        request = request_of(*[b"xxxx"] * chunks)
        with pytest.raises(HTTPException) as caught:
            asyncio.run(read(bodies, request))
        assert (caught.value.status_code, len(request.taken), bodies.held) == (413, read_of_them, 0)


def test_all_bodies_share_one_budget():
    """When others hold the memory, a body is refused until they let go."""

    async def run():
        bodies = BodyReader(largest=10, budget=15)
        async with bodies.reading(request_of(b"x" * 10)):
            with pytest.raises(Overloaded):
                await read(bodies, request_of(b"y" * 6))
            assert bodies.held == 10
        return await read(bodies, request_of(b"y" * 6))

    assert asyncio.run(run()) == b"y" * 6


def test_a_slow_body_runs_out_of_patience():
    """A client that stops in the middle of its body is answered, and its bytes are let go."""
    bodies = BodyReader(patience=0.01)
    with pytest.raises(HTTPException) as caught:
        asyncio.run(read(bodies, request_of(b"a", b"b", then=asyncio.Event().wait)))
    assert (caught.value.status_code, bodies.held) == (408, 0)


def test_a_timeout_inside_the_block_is_its_own():
    """What the block itself raises is not taken for a slow body."""

    async def run():
        async with BodyReader().reading(request_of(b"a")):
            raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        asyncio.run(run())


def test_a_client_that_leaves_in_the_middle_is_gone():
    """A body that ends too early is nobody's request."""

    async def receive():
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
    with pytest.raises(ClientDisconnect):
        asyncio.run(read(BodyReader(), request))


def test_the_endpoints_answer_413():
    """A request that is too large is refused in the shape of every error."""

    async def run():
        async with connected(bodies=BodyReader(largest=100)) as client:
            return await client.post("/v1/embeddings", content=json.dumps({"input": "x" * 100}))

    answer = asyncio.run(run())
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert (answer.json()["error"]["code"], answer.json()["error"]["whose"]) == ("body_too_large", "caller")
    assert "100 bytes" in answer.json()["error"]["message"]
