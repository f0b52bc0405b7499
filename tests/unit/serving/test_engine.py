"""Calls and models brought together: loading, waiting for it, and what happens when it fails."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import CancelledError

import numpy as np
import pytest

from resilient_ai._serving.calls import EmbedCall, RerankCall
from resilient_ai._serving.jobs import Job
from resilient_ai.errors import (
    ConfigurationError,
    DeadlineExceeded,
    InvalidInput,
    ModelCorrupt,
    ModelNotFound,
    Overloaded,
    ResilientAIError,
    ServiceClosed,
)
from resilient_ai.testing import FakeBackend
from serving_kit import DIMENSION, EMBEDDER, engine, hosted, right_vectors

WAIT = 20


class SlowLoad:
    """A loader that waits until it may go on, and then does what it is told to."""

    def __init__(self, *outcomes):
        self.outcomes = iter(outcomes)
        self.began = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.backend = FakeBackend("cpu", DIMENSION)
        self.made = []

    def __call__(self, card):
        self.began.release()
        assert self.go.acquire(timeout=WAIT)
        outcome = next(self.outcomes, None)
        if outcome is not None:
            raise outcome
        self.made.append(hosted(card, self.backend))
        return self.made[-1]


@pytest.fixture
def build(tmp_path):
    """Makes engines that are closed when the test ends."""
    made = []

    def start(*arguments, **options):
        made.append(engine(tmp_path, *arguments, **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


def embed(on, texts, name=EMBEDDER.name, **options):
    call = EmbedCall(
        texts=tuple(texts),
        input_type=options.pop("input_type", "document"),
        instruction=options.pop("instruction", None),
        dimensions=options.pop("dimensions", None),
        normalize=options.pop("normalize", True),
        cache=on.cache,
    )
    settings = {"timeout": None, "priority": "interactive", "progress": None} | options
    return on.submit(name, call, **settings)


def rerank(on, query, documents, name="fake-reranker", *, top_k=None, raw_scores=False, instruction=None):
    call = RerankCall(query, tuple(documents), top_k, instruction, raw_scores)
    return on.submit(name, call, timeout=None, priority="interactive", progress=None)


def expected(texts, **options):
    return right_vectors(texts, model=EMBEDDER.name, **options)


class TestLoading:
    def test_the_first_call_loads(self, build):
        """The first call loads the model it needs, by any of its names; later ones find it loaded."""
        on = build()
        first = embed(on, ["a"], name="somebody/FAKE-embedder").result(WAIT)
        assert first.model == EMBEDDER.name
        np.testing.assert_array_equal(first.vectors, expected(["a"]))
        assert [model.name for model in on.registry.list_loaded()] == [EMBEDDER.name]

    def test_all_wait_for_one_load(self, build):
        """Calls that come while the model loads are served when it is there; it loads once."""
        load = SlowLoad()
        on = build(load=load)
        futures = [embed(on, [f"{n}"]) for n in range(20)]
        load.go.release(5)
        for n, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(WAIT).vectors, expected([f"{n}"]))
        assert len(load.made) == 1

    @pytest.mark.parametrize("error", [ModelCorrupt("torn"), OSError("disk"), MemoryError()])
    def test_a_failed_load(self, build, error):
        """A failed load reaches all who wait, each with an error of its own, and is tried again next time."""
        load = SlowLoad(error)
        on = build(load=load)
        futures = [embed(on, ["a"]) for _ in range(5)]
        load.go.release(9)
        errors = [future.exception(WAIT) for future in futures]
        assert len(set(map(id, errors))) == 5
        if isinstance(error, ModelCorrupt):
            assert {type(each) for each in errors} == {ModelCorrupt}
        else:
            assert {each.__cause__ for each in errors} == {error}
            assert {type(each) for each in errors} == {ResilientAIError}
        np.testing.assert_array_equal(embed(on, ["a"]).result(WAIT).vectors, expected(["a"]))

    def test_loading_beforehand(self, build):
        """A model may be loaded before the first call; twice is nothing."""
        on = build()
        assert on.load(EMBEDDER.name) is on.load("somebody/fake-embedder")

    def test_a_failed_load_beforehand(self, build):
        """Loading beforehand raises the error of the load, foreign ones as errors of the tree."""
        load = SlowLoad(ModelCorrupt("torn"), TimeoutError("the network's own"))
        load.go.release(9)
        on = build(load=load)
        with pytest.raises(ModelCorrupt, match="torn"):
            on.load(EMBEDDER.name)
        with pytest.raises(ResilientAIError, match="network") as caught:
            on.load(EMBEDDER.name)
        assert not isinstance(caught.value, DeadlineExceeded)

    def test_loading_takes_too_long(self, build):
        """Loading beforehand ends at its time limit; the load itself goes on and serves later."""
        load = SlowLoad()
        on = build(load=load)
        with pytest.raises(DeadlineExceeded, match="background"):
            on.load(EMBEDDER.name, timeout=0.02)
        load.go.release()
        assert on.load(EMBEDDER.name, timeout=WAIT).card == EMBEDDER

    def test_a_deadline_while_the_model_loads(self, build):
        """A call whose time runs out while its model loads ends then, and never reaches a device."""
        load = SlowLoad()
        on = build(load=load)
        future = embed(on, ["a"], timeout=0.02)
        with pytest.raises(DeadlineExceeded):
            future.result(WAIT)
        load.go.release()
        embed(on, ["b"]).result(WAIT)
        assert sum(batch.rows for batch in load.backend.calls) == 1

    def test_cancelled_while_the_model_loads(self, build):
        """So does a call that is cancelled."""
        load = SlowLoad()
        on = build(load=load)
        future = embed(on, ["a"])
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result(WAIT)
        load.go.release()
        embed(on, ["b"]).result(WAIT)
        assert sum(batch.rows for batch in load.backend.calls) == 1

    def test_too_many_wait_for_a_model(self, build):
        """Those who wait for a model are bounded, too; room comes back when it is loaded."""
        load = SlowLoad()
        on = build(load=load, queue_size=2)
        waiting = [embed(on, ["a"]) for _ in range(2)]
        with pytest.raises(Overloaded):
            embed(on, ["b"])
        load.go.release()
        for future in waiting:
            future.result(WAIT)
        embed(on, ["b"]).result(WAIT)
        assert on._waiting_for_model == 0

    def test_a_model_that_had_to_leave_at_once(self, build, monkeypatch):
        """A call whose model was loaded, and had to leave before the call's turn came, has it loaded again."""
        on = build()
        real, answers = on.registry.lease, iter([None, None])  # when it is submitted, and after the load
        monkeypatch.setattr(on.registry, "lease", lambda name: next(answers, "real") and real(name))
        np.testing.assert_array_equal(embed(on, ["a"]).result(WAIT).vectors, expected(["a"]))
        assert next(answers, "none left") == "none left"

    def test_a_name_that_changes(self, build):
        """A name that may change is asked for again when its model is not there; it is not loaded then."""
        load = SlowLoad()
        load.go.release(9)
        on = build(load=load)
        on.load(EMBEDDER.name)
        names = iter(["fake-reranker", EMBEDDER.name])
        call = EmbedCall(("a",), "document", None, None, True, on.cache)
        future = on.submit(
            lambda: next(names, EMBEDDER.name), call, timeout=None, priority="interactive", progress=None
        )
        assert future.result(WAIT).model == EMBEDDER.name
        assert len(load.made) == 1

    def test_an_unknown_model(self, build):
        """An unknown name is told at once."""
        on = build()
        with pytest.raises(ModelNotFound):
            embed(on, ["a"], name="nobody")
        with pytest.raises(ModelNotFound):
            on.load("nobody")

    def test_what_only_the_model_can_judge(self, build):
        """Arguments that do not fit the model are the caller's error, before and after it is loaded."""
        load = SlowLoad()
        load.go.release(9)
        on = build(load=load)
        with pytest.raises(InvalidInput, match="dimensions"):
            embed(on, ["a"], dimensions=DIMENSION + 1).result(WAIT)
        with pytest.raises(InvalidInput, match="dimensions"):
            embed(on, ["a"], dimensions=DIMENSION + 1)
        with pytest.raises(ConfigurationError, match="reranker"):
            embed(on, ["a"], name="fake-reranker").result(WAIT)
        with pytest.raises(InvalidInput, match="instruction"):
            rerank(on, "q", ["a"], instruction="do it")
        assert load.backend.calls == ()


class TestDeadlines:
    def test_while_queued(self, build):
        """A call whose time runs out in the queue ends then, and is never computed."""
        go, running = threading.Event(), threading.Event()

        def before(_):
            running.set()
            go.wait(WAIT)

        backend = FakeBackend("cpu", DIMENSION, before=before)
        on = build(backend)
        first = embed(on, ["first"])
        assert running.wait(WAIT)
        late = embed(on, ["late"], timeout=0.05)
        with pytest.raises(DeadlineExceeded):
            late.result(WAIT)
        go.set()
        first.result(WAIT)
        embed(on, ["after"]).result(WAIT)
        assert sum(batch.rows for batch in backend.calls) == 2

    def test_while_running(self, build):
        """A call whose time runs out while it runs ends then, without its device's leave."""
        go, running = threading.Event(), threading.Event()

        def before(_):
            running.set()
            go.wait(WAIT)

        on = build(FakeBackend("cpu", DIMENSION, before=before))
        late = embed(on, ["late"], timeout=0.05)
        assert running.wait(WAIT)
        with pytest.raises(DeadlineExceeded, match="0 of 1"):
            late.result(WAIT)
        go.set()
        np.testing.assert_array_equal(embed(on, ["b"]).result(WAIT).vectors, expected(["b"]))


class TestAnswers:
    def test_no_texts(self, build):
        """Of nothing comes nothing, in the right shape and without a device."""
        backend = FakeBackend("cpu", DIMENSION)
        on = build(backend)
        for _ in range(2):  # while the model loads, and when it is loaded
            answer = embed(on, []).result(WAIT)
            assert answer.vectors.shape == (0, DIMENSION)
            assert (answer.served_by, len(answer.token_counts)) == ((), 0)
            assert embed(on, [], dimensions=4).result(WAIT).vectors.shape == (0, 4)
            assert list(rerank(on, "q", []).result(WAIT)) == []
            assert list(rerank(on, "q", [], EMBEDDER.name).result(WAIT)) == []
        assert backend.calls == ()

    def test_the_cache(self, build):
        """A text that was asked for before is not computed again, and its vector is the same."""
        backend = FakeBackend("cpu", DIMENSION)
        on = build(backend)
        first = embed(on, ["a", "b"]).result(WAIT)
        first.vectors.fill(0)  # the caller's own
        again = embed(on, ["b", "c", "a"]).result(WAIT)
        np.testing.assert_array_equal(again.vectors, expected(["b", "c", "a"]))
        assert (again.served_by, again.token_counts.tolist()) == (("cpu",) * 3, [3, 3, 3])
        again.vectors.fill(0)
        whole = embed(on, ["b", "a"], dimensions=4).result(WAIT)
        assert np.linalg.norm(whole.vectors, axis=1) == pytest.approx([1, 1])
        np.testing.assert_array_equal(embed(on, ["b", "a"]).result(WAIT).vectors, expected(["b", "a"]))
        assert sum(batch.rows for batch in backend.calls) == 3
        assert on.cache.figures().hits == 6

    def test_the_cache_knows_what_makes_a_difference(self, build):
        """Prompt, instruction and normalising make another vector of the same text."""
        on = build()
        answers = [
            embed(on, ["a"]),
            embed(on, ["a"], input_type="query"),
            embed(on, ["a"], input_type="query", instruction="do it"),
            embed(on, ["a"], normalize=False),
        ]
        vectors = [future.result(WAIT).vectors[0] for future in answers]
        for i, one in enumerate(vectors):
            assert not any(np.allclose(one, other) for other in vectors[:i])
        np.testing.assert_array_equal(vectors[2], expected(["Instruct: do it Query: a"])[0])

    def test_fewer_dimensions(self, build):
        """Vectors are sliced, then normalised again; without normalising they are only sliced."""
        on = build()
        sliced = expected(["a"])[:, :5]
        got = embed(on, ["a"], dimensions=5).result(WAIT)
        assert got.dimensions == 5
        np.testing.assert_allclose(got.vectors, sliced / np.linalg.norm(sliced), rtol=1e-6)
        raw = embed(on, ["a"], dimensions=5, normalize=False).result(WAIT)
        np.testing.assert_array_equal(raw.vectors, expected(["a"], task="pool")[:, :5])

    def test_ranking(self, build):
        """Documents come by falling score, the sigmoid of the logit; ties keep the caller's order."""
        logits = {"[SEP] best": 3.0, "[SEP] worst": -3.0, "[SEP] same": 1.0}

        def compute(batch):
            from serving_kit import ENCODER

            known = {tuple(ENCODER.encode([f"q {k}"]).ids.tolist()): v for k, v in logits.items()}
            rows = [
                tuple(r[m == 1].tolist()) for r, m in zip(batch.input_ids, batch.attention_mask, strict=True)
            ]
            return np.array([[known[row]] for row in rows], np.float32)

        on = build(FakeBackend("cpu", DIMENSION, compute))
        documents = ["same", "worst", "same", "best"]
        ranking = rerank(on, "q", documents).result(WAIT)
        assert [(each.index, each.document) for each in ranking] == [
            (3, "best"),
            (0, "same"),
            (2, "same"),
            (1, "worst"),
        ]
        assert ranking[0].score == pytest.approx(1 / (1 + np.exp(-3)))
        assert len(ranking.served_by) == 4
        raw = rerank(on, "q", documents, top_k=2, raw_scores=True).result(WAIT)
        assert [(each.index, each.score) for each in raw] == [(3, 3.0), (0, 1.0)]
        assert len(raw.token_counts) == 4

    def test_ranking_by_late_interaction(self, build):
        """An embedding model ranks by late interaction: the prompted query belongs to every row."""
        from serving_kit import ENCODER

        backend = FakeBackend("cpu", DIMENSION)
        on = build(backend)
        ranking = rerank(on, "q", ["a", "b"], EMBEDDER.name).result(WAIT)
        assert {each.index for each in ranking} == {0, 1}
        (batch,) = backend.calls
        assert batch.task == "maxsim"
        query = "Instruct: find it Query: q"
        assert batch.shared_ids.tolist() == ENCODER.encode([query]).ids.tolist()


class TestMemory:
    def test_a_call_that_is_over_is_let_go(self, build, monkeypatch):
        """Texts and vectors of a call go when it is over and its answer is; nothing waits for the collector."""
        made = []
        plain = Job.__init__

        def init(self, **options):
            plain(self, **options)
            made.append(weakref.ref(self))

        monkeypatch.setattr(Job, "__init__", init)
        on = build(cache_size=0)
        on.load(EMBEDDER.name)
        gc.collect()
        gc.disable()
        try:
            for n in range(50):
                embed(on, [f"{n}"]).result(WAIT)
            embed(on, ["last"]).result(WAIT)
            on.dispatcher.close()
            on.dispatcher.join(WAIT)  # so that the runner holds nothing any more
            assert [one for one in made if one() is not None] == []
        finally:
            gc.enable()


class TestClosing:
    def test_everything_ends(self, build):
        """Closing ends what waits for a model, and refuses what comes later, cached or empty."""
        load = SlowLoad()
        on = build(load=load)
        waiting = embed(on, ["a"])
        assert load.began.acquire(timeout=WAIT)
        on.close()
        on.close()
        assert isinstance(waiting.exception(WAIT), ServiceClosed)
        for texts in ([], ["a"]):
            with pytest.raises(ServiceClosed):
                embed(on, texts)
        load.go.release()

    def test_a_model_that_comes_too_late(self, build):
        """A model whose loading ends after closing is freed, not kept."""
        load = SlowLoad()
        on = build(load=load)
        embed(on, ["a"])
        assert load.began.acquire(timeout=WAIT)
        closed = threading.Event()
        load.backend.close = closed.set
        on.close()
        load.go.release()
        assert closed.wait(WAIT)
        assert on.registry.list_loaded() == []

    def test_models_are_freed(self, build):
        """Closing closes every model that was loaded, and empties cache and pool."""
        backend = FakeBackend("cpu", DIMENSION)
        on = build(backend)
        embed(on, ["a"]).result(WAIT)
        on.close()
        assert backend.closed
        assert on.cache.figures().size == 0
        assert on.pool.statistics().allocated == 0
