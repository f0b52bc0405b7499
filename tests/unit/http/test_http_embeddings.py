"""POST /v1/embeddings answers as OpenAI's does, and refuses what it cannot answer rightly."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
import pytest
from http_kit import DIMENSION, EMBEDDER, LONGEST, Devices, connected

from resilient_ai.testing import FakeBackend


def post(body, *, devices=None, path="/v1/embeddings", **settings):
    async def run():
        async with connected(devices, **settings) as client:
            return await client.post(
                path, **({"content": body} if isinstance(body, bytes) else {"json": body})
            )

    return asyncio.run(run())


def vectors(answer):
    return np.array([item["embedding"] for item in answer.json()["data"]], np.float32)


def error(answer):
    return answer.json()["error"]


def test_texts_become_vectors_in_order():
    """Each text has one item, numbered as it was sent, and the frame is OpenAI's."""
    answer = post({"input": ["one two", "three", "one two"], "model": EMBEDDER.name})
    body = answer.json()
    assert (answer.status_code, body["object"], body["model"]) == (200, "list", EMBEDDER.name)
    assert [(item["object"], item["index"]) for item in body["data"]] == [("embedding", i) for i in range(3)]
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    got = vectors(answer)
    assert got.shape == (3, DIMENSION)
    np.testing.assert_array_equal(got[0], got[2])
    assert abs(got[0] - got[1]).max() > 0.01


def test_one_text_need_not_be_a_list():
    """A string is a list of one."""
    np.testing.assert_array_equal(vectors(post({"input": "hello"})), vectors(post({"input": ["hello"]})))


def test_base64_is_little_endian_float32():
    """base64 carries the very numbers that float carries."""
    texts = {"input": ["one", "two"]}
    packed = post({**texts, "encoding_format": "base64"}).json()["data"]
    got = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in packed]
    np.testing.assert_array_equal(np.stack(got), vectors(post({**texts, "encoding_format": "float"})))


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_large_answers_are_whole(encoding):
    """An answer that is written beside the event loop is the one that would be written on it."""
    devices = Devices()
    axes = np.eye(DIMENSION, dtype=np.float32)
    devices.embedder = FakeBackend("cpu", compute=lambda batch: axes[batch.lengths % DIMENSION])
    texts = ["x " * (1 + i % LONGEST) for i in range(2048)]
    items = post({"input": texts, "encoding_format": encoding}, devices=devices).json()["data"]
    assert [item["index"] for item in items] == list(range(2048))
    if encoding == "base64":
        items = [
            {"embedding": np.frombuffer(base64.b64decode(each["embedding"]), "<f4").tolist()}
            for each in items
        ]
    assert [each["embedding"].index(1) for each in items] == [
        (1 + i % LONGEST) % DIMENSION for i in range(2048)
    ]


def test_dimensions_cut_and_normalise():
    """`dimensions` keeps the first so many numbers, scaled to length 1."""
    answer = post({"input": "hello", "dimensions": 3})
    whole = vectors(post({"input": "hello"}))[0, :3]
    assert answer.json()["dimensions"] == 3
    np.testing.assert_allclose(vectors(answer)[0], whole / np.linalg.norm(whole), rtol=1e-5)


def test_the_answer_says_who_gave_it():
    """Device, degradation and truncation are fields of the answer."""
    body = post({"input": ["short", "w " * (LONGEST + 1)]}, devices=Devices(missing=True)).json()
    assert body["served_by"] == ["cpu"]
    assert body["degraded"] is True
    assert body["truncated"] == [1]
    assert body["elapsed_ms"] > 0


def test_input_type_and_instruction_choose_the_prompt():
    """A query is read with its prompt, which `instruction` fills: the words around it are tokens too."""

    def tokens(**fields):
        return post({"input": "hello", **fields}).json()["usage"]["prompt_tokens"]

    assert tokens() == tokens(input_type="document") == tokens(input_type=None) == 1
    assert tokens(input_type="query") == 2
    assert tokens(input_type="query", instruction="look for the best") == 5


def test_the_model_goes_by_its_names():
    """The model answers to its name and aliases, without regard to case, or when none is named."""
    for name in (EMBEDDER.name, "org/tiny", "TINY", None):
        assert post({"input": "hello", "model": name}).status_code == 200


def test_another_model_is_not_stood_in_for():
    """A request for another model, known to the library or not, is not found."""
    for name in ("text-embedding-3-small", "all-MiniLM-L6-v2", "tiny-judge", ""):
        answer = post({"input": "hello", "model": name})
        assert (answer.status_code, error(answer)["code"]) == (404, "model_not_found")
        assert EMBEDDER.name in error(answer)["message"]


WRONG = {
    "no input": ({}, "input"),
    "null": ({"input": None}, "string or a list"),
    "empty list": ({"input": []}, "at least one"),
    "empty string": ({"input": ""}, "empty string"),
    "an empty string among others": ({"input": ["a", "", "b"]}, "index 1"),
    "token ids": ({"input": [101, 102]}, "token ids"),
    "lists of token ids": ({"input": [[101], [102]]}, "token ids"),
    "a number among texts": ({"input": ["a", 1]}, "input[1]"),
    "too many": ({"input": ["a"] * 2049}, "at most 2048"),
    "encoding_format": ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    "dimensions as text": ({"input": "a", "dimensions": "3"}, "dimensions"),
    "dimensions as truth": ({"input": "a", "dimensions": True}, "dimensions"),
    "no dimensions": ({"input": "a", "dimensions": 0}, "dimensions"),
    "too many dimensions": ({"input": "a", "dimensions": DIMENSION + 1}, "dimensions"),
    "input_type": ({"input": "a", "input_type": "passage"}, "input_type"),
    "no time": ({"input": "a", "timeout": 0}, "timeout"),
    "timeout as text": ({"input": "a", "timeout": "5"}, "timeout"),
    "priority": ({"input": "a", "priority": "high"}, "priority"),
    "model": ({"input": "a", "model": 1}, "model"),
    "not an object": (["a"], "The request"),
    "not JSON": (b"input=a", "not JSON"),
    "nothing": (b"", "not JSON"),
    "not UTF-8": (b'{"input": "\xff"}', "not JSON"),
    "half a surrogate": (rb'{"input": "\ud800"}', "not JSON"),
    "no number": (b'{"input": "a", "timeout": NaN}', "timeout"),
    "endless": (b'{"input": "a", "timeout": Infinity}', "timeout"),
    "a pit": (b'{"input": ' + b"[" * 100_000, "not JSON"),
    "a huge number": (b'{"input": "a", "dimensions": ' + b"9" * 100_000 + b"}", "out of range"),
}


@pytest.mark.parametrize(("body", "named"), WRONG.values(), ids=WRONG)
def test_wrong_requests_are_refused(body, named):
    """What is wrong with a request is named, as the caller's own, before any device sees it."""
    devices = Devices()
    answer = post(body, devices=devices)
    assert answer.status_code == 400
    told = error(answer)
    assert named in told["message"]
    assert (told["type"], told["code"], told["whose"], told["retryable"]) == (
        "invalid_request_error",
        "invalid_input",
        "caller",
        False,
    )
    assert devices.embedder.calls == ()


def test_an_instruction_that_the_model_does_not_read_is_refused():
    """What only the model can judge is the caller's error all the same."""
    answer = post({"query": "a", "documents": ["b"], "instruction": "c"}, path="/v1/rerank")
    assert answer.status_code == 400
    assert "instruction" in error(answer)["message"]


def test_fields_of_other_servers_are_ignored():
    """A field that this server does not have changes nothing."""
    assert post({"input": "hello", "user": "me", "late_chunking": True}).status_code == 200
