"""Health, models, loading and clients that leave."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest
from http_kit import DIMENSION, EMBEDDER, LONGEST, RERANKER, Devices, Gate, client_of, connected, make_service

from resilient_ai._adapters import http
from resilient_ai._adapters.http.app import build_app
from resilient_ai._adapters.http.warmup import keep_loading
from resilient_ai.errors import ConfigurationError, ModelNotFound


def get(path, **settings):
    async def run():
        async with connected(**settings) as client:
            return await client.get(path)

    return asyncio.run(run())


def test_health_tells_what_the_service_says_of_itself():
    """GET /health is `Health` as JSON, and 200 while calls are answered."""
    answer = get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "healthy"
    assert answer.json()["ready"] is True
    assert {model["name"] for model in answer.json()["models"]} == {EMBEDDER.name, RERANKER.name}


def test_ready_waits_for_the_model_live_does_not():
    """Before the model is loaded the server lives but is not ready; closed, it is neither."""

    async def run():
        service = make_service()
        async with client_of(build_app(service)) as client:

            async def codes():
                return [(await client.get(f"/health{path}")).status_code for path in ("", "/live", "/ready")]

            before = await codes()
            await service.load()
            loaded = await codes()
            await service.close()
            return before, loaded, await codes()

    assert asyncio.run(run()) == ([200, 200, 503], [200, 200, 200], [503, 503, 503])


def test_models_are_listed_as_openai_lists_them():
    """GET /v1/models has the models that are served, with all names they go by."""
    body = get("/v1/models").json()
    assert body["object"] == "list"
    assert [(each["id"], each["kind"], each["object"]) for each in body["data"]] == [
        (EMBEDDER.name, "embedding", "model"),
        (RERANKER.name, "reranker", "model"),
    ]
    assert body["data"][0]["aliases"] == ["org/tiny", "tiny"]
    assert body["data"][0]["dimensions"] == DIMENSION
    assert body["data"][0]["max_tokens"] == LONGEST


def test_a_model_that_does_both_is_listed_once():
    """With late interaction there is one model, which also goes by the method's name."""
    (only,) = get("/v1/models", reranker_name="late-interaction").json()["data"]
    assert (only["id"], "late-interaction" in only["aliases"]) == (EMBEDDER.name, True)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/rerank"])
def test_a_client_that_leaves_withdraws_its_call(path):
    """The call of a client that is gone is cancelled, and not waited for."""
    devices = Devices()
    gates = Gate(devices.embedder), Gate(devices.judge)

    async def run():
        service = make_service(devices)
        await service.load()
        calls = record_calls(service)
        async with service:
            await leave(build_app(service), path, b'{"input": "a", "query": "a", "documents": ["b"]}')
            assert [call.cancelled() for call in calls] == [True]
            for gate in gates:
                gate.release()

    asyncio.run(run())


def record_calls(service):
    """The list that the future of every call will be appended to."""
    calls, submit = [], service._service._engine.submit

    def note(*arguments, **options):
        calls.append(submit(*arguments, **options))
        return calls[-1]

    service._service._engine.submit = note
    return calls


async def leave(app, path, body):
    """Send a request and hang up; returns when the application is done with it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    await app({**scope, "http_version": "1.1", "root_path": "", "scheme": "http"}, receive, send)
    assert sent[0]["status"] == 499


def test_the_event_loop_goes_on_while_a_device_computes():
    """Health answers while an embedding is under way."""
    devices = Devices()
    gate = Gate(devices.embedder)

    async def run():
        async with connected(devices) as client:
            call = asyncio.ensure_future(client.post("/v1/embeddings", json={"input": "a"}))
            await gate.reached()
            answer = await client.get("/health")
            assert not call.done()
            gate.release()
            await call
            return answer.json()["queue"]["in_flight_calls"]

    assert asyncio.run(run()) == 1


def test_the_application_loads_its_models_by_itself():
    """Starting the application loads both models without a request."""
    devices, loaded, load = Devices(), threading.Event(), Devices.load

    def note(installed):
        if installed.card is RERANKER:
            loaded.set()
        return load(devices, installed)

    devices.load = note

    async def run():
        service = make_service(devices)
        app = build_app(service)
        async with service, app.router.lifespan_context(app):
            assert await asyncio.to_thread(loaded.wait, 10)

    asyncio.run(run())


def test_loading_is_tried_until_it_works(caplog):
    """A load that failed is tried again, with longer and longer waits up to the longest, and logged."""
    devices = Devices()
    failures = [ModelNotFound("no network")] * 8
    load = devices.load

    def flaky(installed):
        if failures:
            raise failures.pop()
        return load(installed)

    devices.load = flaky
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    async def run():
        async with make_service(devices) as service:
            await keep_loading(service, sleep=sleep)
            return service.health().ready

    assert asyncio.run(run()) is True
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert caplog.text.count("no network") == 8


def test_loading_ends_with_the_service():
    """Nobody tries to load the models of a closed service."""

    async def run():
        service = make_service()
        await service.close()
        await keep_loading(service, sleep=None)

    asyncio.run(run())


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_a_missing_extra_is_named_with_its_remedy(monkeypatch, missing):
    """Without the extra, both entrances say what is missing and the command that brings it."""
    monkeypatch.setitem(sys.modules, missing, None)
    for enter in (lambda: http.serve(None), lambda: http.build_app(None)):
        with pytest.raises(ConfigurationError, match=rf'{missing}.*pip install "resilient-ai\[server\]"'):
            enter()


def test_build_app_is_the_application():
    """The public entrance gives the application that the server runs."""

    async def run():
        async with make_service() as service, client_of(http.build_app(service)) as client:
            return (await client.get("/health/live")).json()

    assert asyncio.run(run()) == {"live": True}
