"""POST /v1/rerank and /v2/rerank answer as Cohere's and Jina's do."""

from __future__ import annotations

import asyncio

import pytest
from http_kit import EMBEDDER, RERANKER, Devices, connected

DOCUMENTS = ["a", "a b c", "a b"]


def post(body, *, path="/v2/rerank", **settings):
    async def run():
        async with connected(**settings) as client:
            return await client.post(path, json=body)

    return asyncio.run(run())


def ask(**fields):
    return {"query": "q", "documents": DOCUMENTS, **fields}


@pytest.mark.parametrize("version", ["1", "2"])
def test_results_are_sorted(version):
    """Results go from the best document to the worst, each with its place in the request."""
    answer = post(ask(model=RERANKER.name), path=f"/v{version}/rerank")
    body = answer.json()
    assert answer.status_code == 200
    assert [result["index"] for result in body["results"]] == [1, 2, 0]
    scores = [result["relevance_score"] for result in body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert all(set(result) == {"index", "relevance_score"} for result in body["results"])
    assert body["meta"]["api_version"]["version"] == version
    assert body["usage"]["total_tokens"] == 2 + 4 + 3
    assert (body["model"], body["served_by"], body["degraded"]) == (RERANKER.name, ["cpu"], False)
    assert body["id"] != post(ask()).json()["id"]


def test_top_n_keeps_the_best():
    """`top_n` leaves out the worst; more than there are is all of them."""
    assert [result["index"] for result in post(ask(top_n=2)).json()["results"]] == [1, 2]
    assert len(post(ask(top_n=99)).json()["results"]) == 3


def test_documents_come_back_when_asked_for():
    """`return_documents` adds the text of each document, however it was given."""
    documents = ["a", {"text": "a b c", "title": "ignored"}, "a b"]
    results = post(ask(documents=documents, return_documents=True)).json()["results"]
    assert [result["document"] for result in results] == [{"text": "a b c"}, {"text": "a b"}, {"text": "a"}]


def test_late_interaction_goes_by_either_name():
    """Where the embedding model reranks, it may be asked for by its names and by the method's."""
    for name in ("late-interaction", EMBEDDER.name, "org/tiny", None):
        answer = post(ask(model=name), reranker_name="late-interaction")
        assert (answer.status_code, answer.json()["model"]) == (200, EMBEDDER.name)


def test_another_model_is_not_stood_in_for():
    """A reranking by another model, the embedding one included, is not found."""
    for name in ("rerank-v3.5", EMBEDDER.name, "late-interaction"):
        answer = post(ask(model=name))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


WRONG = {
    "no query": ({"documents": ["a"]}, "query"),
    "empty query": (ask(query=""), "query"),
    "no documents": ({"query": "q"}, "documents"),
    "empty documents": (ask(documents=[]), "documents"),
    "one document": (ask(documents="a"), "documents"),
    "a number": (ask(documents=["a", 1]), "documents[1]"),
    "an object without text": (ask(documents=[{"title": "a"}]), "documents[0]"),
    "an object with other text": (ask(documents=[{"text": 1}]), "documents[0]"),
    "too many": (ask(documents=["a"] * 10_001), "documents"),
    "top_n": (ask(top_n=0), "top_n"),
    "return_documents": (ask(return_documents="yes"), "return_documents"),
}


@pytest.mark.parametrize(("body", "named"), WRONG.values(), ids=WRONG)
def test_wrong_requests_are_refused(body, named):
    """What is wrong with a request is named, as the caller's own."""
    answer = post(body)
    assert (answer.status_code, answer.json()["error"]["whose"]) == (400, "caller")
    assert named in answer.json()["error"]["message"]


def test_no_device_sees_a_wrong_request():
    """A refused reranking never reaches a device."""
    for body, batches in ((ask(top_n=0), 0), (ask(), 1)):
        devices = Devices()
        post(body, devices=devices)
        assert len(devices.judge.calls) == batches
