"""Every error has a status, a body in one shape, and no more words than clients should read."""

from __future__ import annotations

import asyncio
import logging

import pytest
from http_kit import Devices, Gate, client_of, connected, make_service

from resilient_ai import errors
from resilient_ai._adapters.http.app import build_app
from resilient_ai._adapters.http.problems import describe

STATUS = {
    "InvalidInput": 400,
    "ModelNotFound": 404,
    "Overloaded": 429,
    "DeadlineExceeded": 504,
    "ServiceClosed": 503,
    "DeviceUnavailable": 503,
    "DeviceFailed": 503,
    "AllBackendsFailed": 503,
    "ConfigurationError": 500,
    "ModelCorrupt": 500,
    "ResilientAIError": 500,
}


def test_every_error_of_the_tree_is_mapped():
    """Each class of errors.py has its status, and its own code and blame in the body."""
    classes = [getattr(errors, name) for name in errors.__all__ if name != "Whose"]
    assert {kind.__name__ for kind in classes} == set(STATUS)
    for kind in classes:
        problem = describe(kind("secret"))
        assert problem.status == STATUS[kind.__name__]
        assert (problem.code, problem.retryable, problem.whose) == (kind.code, kind.retryable, kind.whose)
        assert ("secret" in problem.message) == (problem.status != 500)


def test_a_subclass_is_treated_as_its_class():
    """An error that specialises one of the tree has that one's status."""
    assert describe(type("WorkerDied", (errors.DeviceFailed,), {})("gone")).status == 503


def test_types_are_in_the_words_of_openai():
    """The `type` of an error follows from its status."""
    types = {
        describe(getattr(errors, name)("x")).status: describe(getattr(errors, name)("x")).type
        for name in STATUS
    }
    assert types == {
        400: "invalid_request_error",
        404: "invalid_request_error",
        429: "rate_limit_error",
        500: "server_error",
        503: "server_error",
        504: "timeout_error",
    }


@pytest.mark.parametrize(
    ("wait", "seconds", "millis"), [(0.05, "1", "50"), (2.3, "3", "2300"), (0.0, "1", "0")]
)
def test_retry_after_is_rounded_up(wait, seconds, millis):
    """The standard header says whole seconds, never none; the finer one says milliseconds."""
    headers = describe(errors.Overloaded("full", wait)).response().headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == (seconds, millis)


def test_retry_after_of_the_first_device_to_come_back():
    """When all backends failed, the shortest wait that any of them knows is told."""
    causes = (errors.DeviceFailed("a"), errors.Overloaded("b", 7.0), errors.Overloaded("c", 4.0))
    assert describe(errors.AllBackendsFailed("all", causes)).retry_after == 4.0
    unknown = describe(errors.AllBackendsFailed("all", causes[:1])).response()
    assert "retry-after" not in unknown.headers


def ask(devices, path="/v1/embeddings", **fields):
    async def run():
        async with connected(devices) as client:
            return await client.post(path, json={"input": "a", **fields})

    return asyncio.run(run())


def test_a_failing_device_is_unavailable(caplog):
    """A device's failure is 503, retryable, the device's, and logged."""
    devices = Devices()
    devices.embedder.fail_with(errors.DeviceFailed("out of luck"))
    answer = ask(devices)
    assert answer.status_code == 503
    assert answer.json()["error"]["whose"] == "device"
    assert answer.json()["error"]["retryable"] is True
    assert "out of luck" in caplog.text


def test_a_bug_below_shows_nothing_of_itself(caplog):
    """What should not have happened is 500 in general words; its own words are in the log."""
    devices = Devices()

    def fail(_):
        raise RuntimeError("/secret/path")

    devices.encoder.encode = fail
    answer = ask(devices)
    assert answer.status_code == 500
    assert "/secret/path" not in answer.text
    assert "/secret/path" in caplog.text


def test_a_bug_of_the_server_shows_nothing_of_itself():
    """An error of no known kind is 500 in the same shape."""
    service = make_service()
    service.health = lambda: 1 / 0

    async def run():
        async with service, client_of(build_app(service)) as client:
            return await client.get("/health")

    answer = asyncio.run(run())
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "division" not in answer.text


def test_a_call_out_of_time_is_a_gateway_timeout():
    """`timeout` is the deadline of the call, and its passing is 504 and retryable."""
    devices = Devices()
    gate = Gate(devices.embedder)

    async def run():
        async with connected(devices) as client:
            answer = await client.post("/v1/embeddings", json={"input": "a", "timeout": 0.05})
            gate.release()
            return answer

    answer = asyncio.run(run())
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "timeout_error"
    assert answer.json()["error"]["retryable"] is True


def test_a_full_queue_is_too_many_requests():
    """When no more calls may wait, the next one is told at once when to come back."""
    devices = Devices()
    gate = Gate(devices.embedder)

    async def run():
        async with connected(devices, queue_size=1) as client:
            texts = [f"text {number}" for number in range(16)]
            calls = [
                asyncio.ensure_future(client.post("/v1/embeddings", json={"input": text})) for text in texts
            ]
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            gate.release()
            await asyncio.gather(*calls)
            return done.pop().result(), {call.result().status_code for call in calls}

    refused, codes = asyncio.run(run())
    assert codes == {200, 429}
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["retry_after"] > 0


def test_a_closed_service_is_unavailable():
    """After the service was closed, calls are 503."""

    async def run():
        service = make_service()
        await service.close()
        async with client_of(build_app(service)) as client:
            return await client.post("/v1/embeddings", json={"input": "a"})

    answer = asyncio.run(run())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_closed")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/v1/nothing", 404, "not_found"), ("GET", "/v1/embeddings", 405, "method_not_allowed")],
)
def test_wrong_paths_and_methods_have_the_same_shape(method, path, status, code):
    """What the router refuses is an error in the same shape as every other."""

    async def run():
        async with connected() as client:
            return await client.request(method, path)

    answer = asyncio.run(run())
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "code", "retryable", "whose", "retry_after"}
    assert answer.json()["error"]["code"] == code


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.WARNING, "resilient_ai")
