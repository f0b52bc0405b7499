"""Models that change while calls are under way: no call fails, and each is answered by one model."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from resilient_ai import AsyncAIService
from resilient_ai._telemetry.events import EventBus
from resilient_ai.errors import (
    ConfigurationError,
    DeadlineExceeded,
    InvalidInput,
    ModelCorrupt,
    ModelNotFound,
)
from resilient_ai.testing import FakeBackend
from serving_kit import DIMENSION, EMBEDDER, RERANKER, fake_service, hosted, right_vectors

WAIT = 20
TEXTS = ["one", "two words", "and three more"]
OTHER = replace(EMBEDDER, name="other-embedder", aliases=("other",))


def versioned(version, **options):
    """A backend whose right answers are those of one version of a model, and of no other."""
    plain = FakeBackend("cpu", DIMENSION)

    def compute(batch):
        return plain.answer(replace(batch, model=f"version {version}")).values

    return FakeBackend("cpu", DIMENSION, compute, **options)


def vectors_of(version):
    return right_vectors(TEXTS, model=f"version {version}")


VERSIONS = {vectors_of(number).tobytes(): number for number in range(20)}


class Shop:
    """Loads a new version with each load; `make` makes its backend."""

    def __init__(self):
        self.backends = []
        self.make = versioned

    def __call__(self, card):
        self.backends.append(self.make(len(self.backends)))
        return hosted(card, self.backends[-1])


@pytest.fixture
def shop():
    return Shop()


@pytest.fixture
def ai(tmp_path, shop):
    service = fake_service(tmp_path, engine_options={"load": shop, "runners": 3})
    yield service
    service.close()


def change(ai, card=EMBEDDER):
    """Change what a model is made of: here its card, for its files are fakes."""
    ai.registry.register(
        replace(ai.registry.get(card.name), licence=f"{ai.registry.get(card.name).licence}+")
    )


def add_other(ai, root):
    for file in OTHER.files:
        path = root / OTHER.name / file.path
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    ai.registry.register(OTHER)


def version_of(answer):
    """Which version gave the answer, all of it."""
    return VERSIONS[answer.vectors.tobytes()]


class TestReload:
    def test_nothing_changed(self, ai, shop):
        """What has not changed is not loaded again; nor is what is not loaded."""
        assert ai.reload() == ()
        ai.embed(TEXTS)
        assert ai.reload() == ai.reload(EMBEDDER.name) == ai.reload(RERANKER.name) == ()
        assert len(shop.backends) == 1

    def test_what_changed(self, ai, shop):
        """What has changed is loaded and serves from then on; the old one is closed, and its vectors forgotten."""
        assert version_of(ai.embed(TEXTS)) == 0
        change(ai)
        assert ai.reload() == (EMBEDDER.name,)
        assert version_of(ai.embed(TEXTS)) == 1
        until(lambda: shop.backends[0].closed)
        assert not shop.backends[1].closed

    def test_health_tells_which(self, ai):
        """Health names the fingerprint of what serves, its weight, and how many calls have it."""
        ai.embed(TEXTS)
        until(lambda: ai.health().models[0].calls == 0)  # its last step comes after the answer
        (told,) = ai.health().models
        assert told.fingerprint == ai.registry.pull(EMBEDDER.name).fingerprint
        assert (told.weight_bytes, told.calls, told.revision) == (2, 0, None)
        assert ai.health().resident_bytes > 1 << 20

    def test_calls_under_way_end_on_the_old_one(self, ai, shop):
        """A call that has begun keeps its model to its end, which is not closed before."""
        running, go = threading.Event(), threading.Event()

        def wait(_):
            running.set()
            assert go.wait(WAIT)

        shop.make = lambda version: versioned(version, before=wait if version == 0 else None)
        slow = ai.submit_embed(TEXTS)
        assert running.wait(WAIT)
        change(ai)
        assert ai.reload() == (EMBEDDER.name,)
        assert version_of(ai.embed(TEXTS)) == 1
        assert not shop.backends[0].closed
        go.set()
        assert version_of(slow.result(WAIT)) == 0
        until(lambda: shop.backends[0].closed)

    @pytest.mark.parametrize("wrong", ["nan", "other dimension", "one and the same"])
    def test_a_new_one_that_answers_wrongly(self, ai, shop, wrong):
        """A new model whose canary answer cannot be right never serves; the old one goes on."""

        def broken(batch):
            values = np.random.default_rng(0).normal(size=(batch.rows, DIMENSION)).astype(np.float32)
            if wrong == "other dimension":
                values = np.concatenate([values, values], axis=1)
            if wrong == "one and the same":
                values[:] = values[0]
            values /= np.linalg.norm(values, axis=1, keepdims=True)
            if wrong == "nan":
                values[1, 2] = np.nan
            return values

        ai.embed(TEXTS)
        change(ai)
        shop.make = lambda _: FakeBackend("cpu", DIMENSION, broken)
        with pytest.raises(ModelCorrupt, match="does not answer rightly"):
            ai.reload()
        assert shop.backends[1].closed
        assert version_of(ai.embed(TEXTS)) == 0

    def test_a_new_one_that_cannot_be_loaded(self, ai, shop):
        """Nor does one that cannot be loaded; the next attempt is a new one."""

        def fail(_):
            raise ModelCorrupt("torn")

        ai.embed(TEXTS)
        change(ai)
        shop.make = fail
        with pytest.raises(ModelCorrupt, match="torn"):
            ai.reload()
        assert version_of(ai.embed(TEXTS)) == 0
        shop.make = versioned
        assert ai.reload() == (EMBEDDER.name,)
        assert version_of(ai.embed(TEXTS)) == 1

    def test_it_takes_too_long(self, ai, shop):
        """A reload that takes longer than it may goes on in the background."""
        go = threading.Event()

        def slow(version):
            assert go.wait(WAIT)
            return versioned(version)

        ai.embed(TEXTS)
        change(ai)
        shop.make = slow
        with pytest.raises(DeadlineExceeded):
            ai.reload(timeout=0.02)
        assert version_of(ai.embed(TEXTS)) == 0
        go.set()
        until(lambda: version_of(ai.embed(TEXTS)) == 1)

    def test_closing_under_way(self, ai, shop):
        """A service that is closed while it reloads keeps nothing open."""
        began, go = threading.Event(), threading.Event()

        def slow(version):
            began.set()
            assert go.wait(WAIT)
            return versioned(version)

        ai.embed(TEXTS)
        change(ai)
        shop.make = slow
        with ThreadPoolExecutor(1) as threads:
            ended = threads.submit(ai.reload)
            assert began.wait(WAIT)
            ai.close()
            go.set()
            assert ended.exception(WAIT) is not None
        until(lambda: all(backend.closed for backend in shop.backends))

    def test_events(self, tmp_path, shop):
        """That a model was replaced, and that the old one was closed, is told."""
        told, bus = [], EventBus()
        bus.subscribe(told.append)
        with fake_service(tmp_path, engine_options={"load": shop, "events": bus}) as ai:
            ai.embed(TEXTS)
            change(ai)
            ai.reload()
            until(lambda: len(told) == 2)
        assert [event.name for event in told] == ["ModelReplaced", "ModelUnloaded"]
        assert {event.model for event in told} == {EMBEDDER.name}
        assert told[0].elapsed_ms >= 0

    def test_a_reranker(self, ai, shop):
        """A reranker is replaced as an embedding model is."""
        before = ai.rerank("q", ["a", "b"])
        change(ai, RERANKER)
        assert ai.reload(RERANKER.name) == (RERANKER.name,)
        after = ai.rerank("q", ["a", "b"])
        assert {each.score for each in before}.isdisjoint({each.score for each in after})

    def test_through_the_asynchronous_face(self, tmp_path, shop):
        """The same is done without blocking a loop."""

        async def main():
            async with fake_service(tmp_path, kind=AsyncAIService, engine_options={"load": shop}) as ai:
                await ai.embed(TEXTS)
                change(ai)
                assert await ai.reload() == (EMBEDDER.name,)
                assert version_of(await ai.embed(TEXTS)) == 1
                add_other(ai, tmp_path)
                await ai.use(model_name=OTHER.name)
                assert (await ai.embed(TEXTS)).model == OTHER.name

        asyncio.run(main())

    def test_unknown(self, ai):
        """An unknown name is told."""
        with pytest.raises(ModelNotFound):
            ai.reload("nobody")


class TestUse:
    def test_another_model(self, ai, shop, tmp_path):
        """After switching, calls that name no model go to the new one; the old one is closed."""
        add_other(ai, tmp_path)
        assert ai.embed(TEXTS).model == EMBEDDER.name
        ai.use(model_name="other")
        answer = ai.embed(TEXTS)
        assert (answer.model, ai.settings.model_name) == (OTHER.name, "other")
        until(lambda: shop.backends[0].closed)
        assert ai.health().ready

    def test_the_same_by_another_name(self, ai, shop):
        """A model is the same by any of its names, and stays."""
        ai.embed(TEXTS)
        ai.use(model_name=EMBEDDER.aliases[0])
        assert version_of(ai.embed(TEXTS)) == 0

    def test_the_wrong_kind(self, ai, shop):
        """A reranker does not embed; nothing changes, and it is not kept."""
        with pytest.raises(ConfigurationError, match="gives no vectors"):
            ai.use(model_name=RERANKER.name)
        assert ai.settings.model_name == EMBEDDER.name
        until(lambda: shop.backends[0].closed)
        with pytest.raises(InvalidInput):
            ai.embed(TEXTS, model=7)

    def test_without_a_reranker(self, ai, shop):
        """The embedding model may take over the reranking; the reranker is closed then."""
        ai.rerank("q", ["a"])
        ai.use(reranker_name="late-interaction")
        assert ai.rerank("q", ["a"]).model == EMBEDDER.name
        until(lambda: shop.backends[0].closed)
        assert [model.name for model in ai.registry.list_loaded()] == [EMBEDDER.name]

    def test_in_too_little_time(self, ai, shop, tmp_path):
        """Switching that takes too long changes nothing."""
        go = threading.Event()

        def slow(version):
            assert go.wait(WAIT)
            return versioned(version)

        add_other(ai, tmp_path)
        ai.embed(TEXTS)
        shop.make = slow
        with pytest.raises(DeadlineExceeded):
            ai.use(model_name=OTHER.name, timeout=0.02)
        assert ai.embed(TEXTS).model == EMBEDDER.name
        go.set()
        until(lambda: len(ai.registry.list_loaded()) == 2)

    def test_where_settings_came_from(self, ai, tmp_path):
        """The settings of the service tell the new names, as given by keyword."""
        add_other(ai, tmp_path)
        ai.use(model_name=OTHER.name)
        told = {line.name: line for line in ai.settings.report()}
        assert (told["model_name"].value, told["model_name"].origin) == (OTHER.name, "keyword")
        assert told["reranker_name"].value == RERANKER.name


class TestSideBySide:
    def test_models_by_name(self, ai, tmp_path):
        """A call may name another model, which is loaded beside the service's own."""
        add_other(ai, tmp_path)
        assert [ai.embed(TEXTS, model=name).model for name in ("other", EMBEDDER.name)] == [
            OTHER.name,
            EMBEDDER.name,
        ]
        assert ai.rerank("q", ["a"], model=RERANKER.name).model == RERANKER.name
        assert ai.rerank("q", ["a"], model="other").model == OTHER.name
        assert len(ai.registry.list_loaded()) == 3


def run_callers(ai, stop, calls):
    """Call from eight threads until it is enough; returns what each of them got, and what went wrong."""
    barrier = threading.Barrier(8)

    def work():
        got = []
        barrier.wait()
        while not stop.is_set() or len(got) < calls:
            got.append(ai.embed(TEXTS, timeout=WAIT))
        return got

    threads = ThreadPoolExecutor(8)
    return threads, [threads.submit(work) for _ in range(8)]


def until(so):
    give_up = threading.Event()
    for _ in range(WAIT * 200):
        if so():
            return
        give_up.wait(0.005)
    raise AssertionError("it does not come about")


class TestUnderTraffic:
    def test_reloading(self, ai, shop):
        """Eight threads call while the model is replaced: none fails, mixes versions, or gets an older one."""
        ai.embed(TEXTS)
        stop = threading.Event()
        threads, ended = run_callers(ai, stop, 20)
        for _ in range(8):
            change(ai)
            assert ai.reload() == (EMBEDDER.name,)
        stop.set()
        with threads:
            for each in ended:
                versions = [version_of(answer) for answer in each.result(WAIT)]
                assert versions == sorted(versions)
        until(lambda: sum(not backend.closed for backend in shop.backends) == 1)
        assert version_of(ai.embed(TEXTS)) == len(shop.backends) - 1 == 8

    def test_switching_to_and_fro(self, ai, shop, tmp_path):
        """The same while the service switches between two models; none is loaded without need."""
        add_other(ai, tmp_path)
        ai.embed(TEXTS)
        stop = threading.Event()
        threads, ended = run_callers(ai, stop, 20)
        for round_ in range(8):
            ai.use(model_name=(OTHER, EMBEDDER)[round_ % 2].name)
        stop.set()
        with threads:
            for each in ended:
                for answer in each.result(WAIT):
                    version_of(answer)
        # One for each time that another model came, and the reranker.
        assert len(shop.backends) <= 1 + 8 + 1

    def test_models_that_do_not_fit_together(self, tmp_path, shop):
        """With room for one model, threads that want two get right answers from each, all the time."""
        from resilient_ai._models.keeping import KeepRules

        service = fake_service(tmp_path, engine_options={"load": shop, "keep": KeepRules(models=1)})
        add_other(service, tmp_path)

        def work(name):
            for _ in range(20):
                answer = service.embed(TEXTS, model=name, timeout=WAIT)
                assert answer.model == name
                version_of(answer)

        with service, ThreadPoolExecutor(8) as threads:
            for ended in [threads.submit(work, (EMBEDDER, OTHER)[n % 2].name) for n in range(8)]:
                ended.result(WAIT)
        until(lambda: all(backend.closed for backend in shop.backends))
