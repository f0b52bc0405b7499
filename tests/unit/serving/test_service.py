"""The service over fakes: what callers hand in, what they get back, and when it ends."""

from __future__ import annotations

import gc
import itertools
import json
import threading
import weakref

import numpy as np
import pytest

from resilient_ai import AIService, AISettings
from resilient_ai.errors import (
    DeadlineExceeded,
    DeviceFailed,
    InvalidInput,
    ModelNotFound,
    Overloaded,
    ServiceClosed,
)
from resilient_ai.testing import FakeBackend
from serving_kit import DIMENSION, EMBEDDER, fake_service, right_vectors

WAIT = 20


@pytest.fixture
def backend():
    return FakeBackend("cpu", DIMENSION)


@pytest.fixture
def ai(tmp_path, backend):
    with fake_service(tmp_path, backend) as service:
        yield service


def expected(texts):
    return right_vectors(texts, model=EMBEDDER.name)


class TestCalls:
    def test_embed(self, ai):
        """Documents come back in order, with all there is to say about them."""
        answer = ai.embed(["a", "b c"])
        np.testing.assert_array_equal(answer.vectors, expected(["a", "b c"]))
        assert (answer.model, answer.dimensions, len(answer)) == (EMBEDDER.name, DIMENSION, 2)
        assert (answer.served_by, answer.degraded) == (("cpu", "cpu"), False)
        assert (answer.token_counts.tolist(), answer.truncated.tolist()) == ([3, 4], [False, False])
        assert answer.elapsed_ms > 0
        assert "2x16" in repr(answer)

    def test_queries_and_documents(self, ai):
        """A query gets the query prompt and one vector, documents get theirs and rows."""
        query = ai.embed_query("a", instruction="do it")
        np.testing.assert_array_equal(query, expected(["Instruct: do it Query: a"])[0])
        assert (query.shape, query.dtype) == ((DIMENSION,), np.float32)
        np.testing.assert_array_equal(ai.embed_documents(["a"]), expected(["a"]))
        np.testing.assert_array_equal(ai.embed_query("a", input_type="document"), expected(["a"])[0])

    def test_rerank(self, ai):
        """A ranking is a sequence, sorted, of the documents that were given."""
        ranking = ai.rerank("q", ("a", "b", "c"), top_k=2)
        assert len(ranking) == 2
        assert ranking[0].score >= ranking[1].score
        assert ranking[:1] == (ranking[0],)
        assert {each.document for each in ranking} <= {"a", "b", "c"}
        assert all(0 < each.score < 1 for each in ranking)

    def test_the_setting_for_normalizing(self, tmp_path, backend):
        """AI_NORMALIZE holds where the caller says nothing."""
        with fake_service(tmp_path, backend, normalize=False) as ai:
            assert not np.allclose(np.linalg.norm(ai.embed_documents(["a"])), 1)
            np.testing.assert_allclose(
                np.linalg.norm(ai.embed_documents(["a"], normalize=True)), 1, rtol=1e-6
            )

    def test_the_default_timeout(self, tmp_path):
        """AI_TIMEOUT_MS is the deadline of calls that name none."""
        go = threading.Event()
        backend = FakeBackend("cpu", DIMENSION, before=lambda _: go.wait(WAIT))
        with fake_service(tmp_path, backend, timeout_ms=50) as ai:
            with pytest.raises(DeadlineExceeded):
                ai.embed(["a"])
            go.set()

    def test_lists_that_change_meanwhile(self, tmp_path):
        """What the caller does with its list after the call has begun changes nothing."""
        go = threading.Event()
        backend = FakeBackend("cpu", DIMENSION, before=lambda _: go.wait(WAIT))
        with fake_service(tmp_path, backend) as ai:
            texts, documents = ["a", "b"], ["x", "y", "z"]
            embedding, ranking = ai.submit_embed(texts), ai.submit_rerank("q", documents)
            texts.clear()
            documents[:] = ["changed"]
            go.set()
            np.testing.assert_array_equal(embedding.result(WAIT).vectors, expected(["a", "b"]))
            assert {each.document for each in ranking.result(WAIT)} == {"x", "y", "z"}

    def test_a_device_that_fails(self, ai, backend):
        """The device's own words reach the caller, and the next call goes well."""
        backend.fail_with(RuntimeError("CUDA error 700: an illegal memory access was encountered"))
        with pytest.raises(DeviceFailed, match="illegal memory access"):
            ai.embed(["a"])
        np.testing.assert_array_equal(ai.embed(["a"]).vectors, expected(["a"]))


BAD_EMBEDS = [
    ({"texts": "one text"}, "list"),
    ({"texts": b"bytes"}, "list"),
    ({"texts": None}, "list"),
    ({"texts": ["a", None]}, r"texts\[1\]"),
    ({"texts": ["a", b"b"]}, r"texts\[1\]"),
    ({"texts": ["a", "\ud800"]}, "surrogate"),
    ({"dimensions": 0}, "dimensions"),
    ({"dimensions": DIMENSION + 1}, "dimensions"),
    ({"dimensions": True}, "dimensions"),
    ({"dimensions": 2.5}, "dimensions"),
    ({"timeout": float("nan")}, "timeout"),
    ({"timeout": -1}, "timeout"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": "5"}, "timeout"),
    ({"priority": "urgent"}, "priority"),
    ({"input_type": "title"}, "input_type"),
    ({"instruction": b"x", "input_type": "query"}, "instruction"),
]
BAD_RERANKS = [
    ({"query": None}, "query"),
    ({"query": b"q"}, "query"),
    ({"query": "\ud800"}, "surrogate"),
    ({"documents": "one document"}, "list"),
    ({"documents": ["a", 5]}, r"documents\[1\]"),
    ({"documents": ["a", "\udfff"]}, "surrogate"),
    ({"top_k": 0}, "top_k"),
    ({"top_k": -1}, "top_k"),
    ({"top_k": True}, "top_k"),
    ({"top_k": 1.0}, "top_k"),
    ({"timeout": float("nan")}, "timeout"),
    ({"instruction": "this model reads none"}, "instruction"),
]


class TestWrongArguments:
    @pytest.mark.parametrize(("wrong", "told"), BAD_EMBEDS)
    @pytest.mark.parametrize("loaded", [False, True])
    def test_embed(self, ai, backend, wrong, told, loaded):
        """A wrong argument is the caller's error, and no device sees it; the service goes on."""
        if loaded:
            ai.load()
        with pytest.raises(InvalidInput, match=told):
            ai.embed(**{"texts": ["a"]} | wrong)
        assert backend.calls == ()
        assert ai.embed(["a"]).vectors.shape == (1, DIMENSION)

    @pytest.mark.parametrize(("wrong", "told"), BAD_RERANKS)
    def test_rerank(self, ai, backend, wrong, told):
        """The same holds for reranking."""
        with pytest.raises(InvalidInput, match=told):
            ai.rerank(**{"query": "q", "documents": ["a"]} | wrong)
        assert backend.calls == ()

    @pytest.mark.parametrize("bad", [None, b"x", 5, ["a"], "\ud800"])
    def test_embed_query(self, ai, backend, bad):
        """A query is one string."""
        with pytest.raises(InvalidInput):
            ai.embed_query(bad)
        assert backend.calls == ()

    @pytest.mark.parametrize(
        ("texts", "options"),
        [("text", {}), (None, {}), (["a"], {"chunk_size": 0}), (["a"], {"chunk_size": True})],
    )
    def test_embed_stream(self, ai, texts, options):
        """Wrong arguments of a stream are told at once, before the first chunk is asked for."""
        with pytest.raises(InvalidInput):
            ai.embed_stream(texts, **options)

    def test_an_unknown_model(self, tmp_path, backend):
        """An unknown model is told at the first call; health does not fail over it."""
        with fake_service(tmp_path, backend, model_name="nobody") as ai:
            with pytest.raises(ModelNotFound):
                ai.embed(["a"])
            assert not ai.health().ready


class TestStream:
    def test_everything_in_order(self, ai):
        """A stream gives every text's vector once, in order, in chunks."""
        texts = [f"text {n}" for n in range(1003)]
        parts = list(ai.embed_stream(iter(texts), chunk_size=100))
        assert [len(part) for part in parts] == [100] * 10 + [3]
        np.testing.assert_array_equal(np.concatenate([part.vectors for part in parts]), expected(texts))
        assert list(ai.embed_stream([])) == []

    def test_it_reads_little_ahead(self, ai):
        """However fast the device, no more than two chunks beyond what was taken are read."""
        read = itertools.count()
        source = (f"{next(read)}" for _ in range(10_000))
        stream = ai.embed_stream(source, chunk_size=10)
        for taken in range(1, 20):
            next(stream)
            assert next(read) <= (taken + 2) * 10 + taken
        stream.close()

    def test_closing_cancels(self, tmp_path):
        """Closing the iterator withdraws what it has under way and reads no more of the source."""
        go, batches, read = threading.Event(), itertools.count(1), []

        def before(_):
            if next(batches) > 2:  # the first call's and the first chunk's may pass
                go.wait(WAIT)

        def source():
            for n in range(100):
                read.append(n)
                yield f"{n}"

        backend = FakeBackend("cpu", DIMENSION, before=before)
        with fake_service(tmp_path, backend) as ai:
            ai.embed(["warm"])
            stream = ai.embed_stream(source(), chunk_size=1)
            assert len(next(stream)) == 1
            stream.close()
            go.set()
            np.testing.assert_array_equal(ai.embed(["after"]).vectors, expected(["after"]))
            assert len(read) <= 3
            assert sum(batch.rows for batch in backend.calls) <= 5
            assert ai.health().queue.calls == 0

    def test_errors_of_the_source(self, ai):
        """What the source raises comes through; the service goes on."""

        def broken():
            yield from ["a"] * 25
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            list(ai.embed_stream(broken(), chunk_size=10))
        assert len(ai.embed(["a"])) == 1

    def test_a_bad_text_in_the_middle(self, ai):
        """A bad text ends the stream with the caller's error, after the chunks before it."""
        stream = ai.embed_stream(["a"] * 10 + [None] + ["a"] * 100, chunk_size=5)
        with pytest.raises(InvalidInput, match=r"texts\[0\]"):
            list(stream)


class TestHealth:
    def test_before_and_after_loading(self, ai):
        """Ready means that the embedding model is loaded; everything is JSON."""
        before = ai.health()
        assert (before.status, before.live, before.ready) == ("healthy", True, False)
        ai.load()
        after = ai.health()
        assert (after.status, after.live, after.ready) == ("healthy", True, True)
        assert {model.name for model in after.models} == {EMBEDDER.name, "fake-reranker"}
        json.dumps(after.to_dict())

    def test_a_model_known_by_another_name(self, tmp_path):
        """A service whose model is named by an alias becomes ready as well."""
        with fake_service(tmp_path, model_name="Somebody/Fake-Embedder") as ai:
            ai.embed(["a"])
            assert ai.health().ready

    def test_closed(self, tmp_path):
        """A closed service is neither live nor healthy."""
        ai = fake_service(tmp_path)
        ai.close()
        told = ai.health()
        assert (told.status, told.live, told.ready) == ("unhealthy", False, False)
        assert "closed" in repr(ai)


class TestEnding:
    def test_closed(self, ai):
        """A closed service refuses every call; closing twice is nothing."""
        ai.embed(["a"])
        ai.close()
        ai.close()
        for call in (
            lambda: ai.embed(["a"]),
            lambda: ai.embed([]),
            lambda: ai.embed_query("a"),
            lambda: ai.rerank("q", ["a"]),
            lambda: list(ai.embed_stream(["a"])),
            ai.load,
        ):
            with pytest.raises(ServiceClosed):
                call()

    def test_forgotten(self, tmp_path):
        """A service that is forgotten ends its threads and frees its models."""
        backend = FakeBackend("cpu", DIMENSION)
        ai = fake_service(tmp_path, backend)
        ai.embed(["a"], timeout=60)
        assert any(thread.name.startswith("resilient-ai") for thread in threading.enumerate())
        known = weakref.ref(ai)
        del ai
        gc.collect()
        assert known() is None
        assert backend.closed

    def test_many_services(self, tmp_path):
        """Services do not know of each other: closing one leaves the others alone."""
        first, second = fake_service(tmp_path), fake_service(tmp_path)
        with second:
            with first:
                first.embed(["a"])
            assert len(second.embed(["a"])) == 1

    def test_closing_with_calls_in_flight(self, tmp_path):
        """Closing ends calls that are under way, also when the device never answers."""
        go, running = threading.Event(), threading.Event()

        def before(_):
            running.set()
            go.wait(WAIT)

        ai = fake_service(tmp_path, FakeBackend("cpu", DIMENSION, before=before))
        futures = [ai.submit_embed([f"{n}"]) for n in range(10)]
        assert running.wait(WAIT)
        ai.close(timeout=0.05)
        assert {type(future.exception(0)) for future in futures} == {ServiceClosed}
        go.set()

    def test_overloaded(self, tmp_path):
        """Beyond the queue's bound callers are refused at once."""
        go = threading.Event()
        backend = FakeBackend("cpu", DIMENSION, before=lambda _: go.wait(WAIT))
        with fake_service(tmp_path, backend, engine_options={"queue_size": 5}) as ai:
            ai.load()
            with pytest.raises(Overloaded) as caught:
                [ai.submit_embed([f"{n}"]) for n in range(50)]
            assert caught.value.retry_after > 0
            assert ai.health().queue.rejected >= 1
            go.set()

    def test_construction_is_cheap(self, tmp_path):
        """A service that was made and never used has started nothing."""
        before = threading.active_count()
        with fake_service(tmp_path):
            assert threading.active_count() == before
        assert AIService.__doc__


class TestCallbacks:
    def test_waiting_inside_a_callback_is_refused(self, ai):
        """A call that waits on the thread that would have to run it gets an error, not a hang."""
        met = []

        def call_again(*_):
            with pytest.raises(InvalidInput, match="submit_embed"):
                ai.embed(["b"])
            met.append(threading.current_thread().name)

        ai.embed(["a"], progress=call_again, timeout=WAIT)
        assert met
        assert len(ai.embed(["c"], timeout=WAIT)) == 1

    def test_progress_that_cannot_be_called(self, ai):
        """What is no function is refused before anything runs."""
        with pytest.raises(InvalidInput, match="progress"):
            ai.embed(["a"], progress=3)

    def test_numpy_numbers_are_numbers(self, ai):
        """Sizes may come from numpy."""
        assert ai.embed(["a"], dimensions=np.int64(2)).dimensions == 2
        assert len(ai.rerank("q", ["a", "b"], top_k=np.int32(1))) == 1


class TestFullQueue:
    def test_a_stream_waits_for_its_own_rows_first(self, tmp_path):
        """Where the queue has one place only, a stream takes its turns instead of giving up."""
        options = {"queue_size": 1}
        with fake_service(tmp_path, FakeBackend("cpu", DIMENSION), engine_options=options) as ai:
            ai.load()
            parts = list(ai.embed_stream((f"w{n}" for n in range(64)), chunk_size=2))
        assert [len(part) for part in parts] == [2] * 32


def test_a_misspelt_variable_is_reported(caplog):
    """A variable that is nearly a setting's name is told in the log; a stranger's is not."""
    settings = AISettings.load(environ={"AI_BATCHSIZE": "3", "AI_ZZZZZZZZZZ": "1"}, use_gpu="never")
    with AIService(settings):
        assert "AI_BATCHSIZE is no setting; did you mean AI_BATCH_SIZE?" in caplog.text
    assert "ZZZ" not in caplog.text
