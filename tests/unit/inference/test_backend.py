"""Every task on graphs that do the work themselves and on graphs that leave it to the backend."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from graph_kit import write_graph
from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.session import Session
from resilient_ai.errors import DeviceUnavailable, ModelCorrupt
from resilient_ai.testing import batch_of

pytest.importorskip("onnxruntime")

SCALE = np.array([1, 2, 3, -4], np.float32)
UNIT = SCALE / np.linalg.norm(SCALE)


@pytest.fixture
def backend(tmp_path):
    """Builds a backend over a graph with the given outputs."""

    def build(*outputs, pooling=None, **options):
        session = Session(write_graph(tmp_path / "model.onnx", *outputs, **options), threads=1)
        return OrtBackend(session, device="cpu", pooling=pooling)

    return build


ROWS = batch_of([3, 5, 7], [2])


class TestEmbed:
    @pytest.mark.parametrize(
        ("outputs", "pooling"),
        [
            (["sentence_embedding"], None),
            (["pooled"], None),
            (["last_hidden_state"], "cls"),
            (["token_embeddings"], "cls"),
        ],
    )
    def test_unit_vectors(self, backend, outputs, pooling):
        """Whatever the graph gives, "embed" answers with float32 vectors of length 1."""
        answer = backend(*outputs, pooling=pooling).run(ROWS)
        assert (answer.device, answer.degraded, answer.values.dtype) == ("cpu", False, np.float32)
        np.testing.assert_allclose(answer.values, [UNIT, UNIT], rtol=1e-6)

    @pytest.mark.parametrize(("pooling", "number"), [("cls", 3), ("last_token", 7), ("mean", 5)])
    def test_pooling_is_the_cards(self, backend, pooling, number):
        """Token vectors are pooled as the card says, over real tokens alone."""
        answer = backend("last_hidden_state", pooling=pooling).run(replace(ROWS, task="pool"))
        np.testing.assert_allclose(answer.values, [SCALE * number, SCALE * 2], rtol=1e-6)

    def test_pooled_by_the_graph(self, backend):
        """The task "pool" takes what the graph has pooled, not normalised."""
        answer = backend("sentence_embedding", "pooled", pooling="mean").run(replace(ROWS, task="pool"))
        np.testing.assert_allclose(answer.values, [SCALE * 3, SCALE * 2], rtol=1e-6)

    def test_half_precision(self, backend):
        """A graph in half precision gives float32 all the same."""
        answer = backend("pooled", half=True).run(replace(ROWS, task="pool"))
        assert answer.values.dtype == np.float32
        np.testing.assert_allclose(answer.values, [SCALE * 3, SCALE * 2])

    def test_the_answer_is_the_callers(self, backend):
        """An answer does not change when its batch's memory is used again."""
        ids = ROWS.input_ids.copy()
        batch = replace(ROWS, input_ids=ids, task="pool")
        answer = backend("pooled").run(batch)
        ids.fill(99)
        np.testing.assert_allclose(answer.values, [SCALE * 3, SCALE * 2])


class TestTypes:
    def test_given_types(self, backend):
        """Type ids reach a graph that takes them."""
        batch = replace(ROWS, task="pool", type_ids=np.array([[1, 0, 0], [0, 0, 0]]))
        answer = backend("pooled", type_ids=True).run(batch)
        np.testing.assert_allclose(answer.values, [SCALE * 13, SCALE * 2])

    def test_no_types(self, backend):
        """A graph that takes types gets zeros where there are none, and one that does not gets none."""
        answer = backend("pooled", type_ids=True).run(replace(ROWS, task="pool"))
        np.testing.assert_allclose(answer.values, [SCALE * 3, SCALE * 2])
        unused = replace(ROWS, task="pool", type_ids=np.ones((2, 3), np.int64))
        np.testing.assert_allclose(backend("pooled").run(unused).values, [SCALE * 3, SCALE * 2])


class TestScore:
    def test_one_logit_a_row(self, backend):
        """A reranker's logits come as one column."""
        answer = backend("logits").run(replace(ROWS, task="score"))
        assert answer.values.tolist() == [[3], [2]]

    def test_no_and_yes(self, backend):
        """Of two logits a row, for no and for yes, the score is what yes has more."""
        answer = backend("no_and_yes").run(replace(ROWS, task="score"))
        assert answer.values.tolist() == [[-6], [-4]]

    @pytest.mark.parametrize("output", ["classes", "words"])
    def test_other_logits(self, backend, output):
        """A classifier of several classes is no reranker, nor is a model of words, and both are told so."""
        with pytest.raises(ModelCorrupt, match="one score a document"):
            backend(output).run(replace(ROWS, task="score"))


class TestMaxsim:
    def test_scores(self, backend):
        """Late interaction works on token vectors; here all point the same way."""
        batch = replace(ROWS, task="maxsim", shared_ids=np.array([4, 9]))
        answer = backend("last_hidden_state").run(batch)
        np.testing.assert_allclose(answer.values, [[1], [1]], rtol=1e-6)

    def test_the_query_runs_once(self, backend, monkeypatch):
        """The same query is computed once for all its batches; another one anew."""
        under_test = backend("token_embeddings")
        runs = []
        plain = under_test._session.run
        monkeypatch.setattr(
            under_test._session, "run", lambda outputs, feeds: runs.append(feeds) or plain(outputs, feeds)
        )
        batch = replace(ROWS, task="maxsim", shared_ids=np.array([4, 9]))
        under_test.run(batch)
        under_test.run(batch)
        under_test.run(replace(batch, shared_ids=np.array([4])))
        assert [feed["input_ids"].shape for feed in runs] == [(1, 2), (2, 3), (2, 3), (1, 1), (2, 3)]

    def test_threads(self, backend):
        """Many threads with many queries get the right scores."""
        under_test, barrier = backend("token_embeddings"), threading.Barrier(6)

        def work(number):
            barrier.wait()
            batch = replace(ROWS, task="maxsim", shared_ids=np.array([number + 1, 5]))
            return [under_test.run(batch).values.tolist() for _ in range(30)]

        with ThreadPoolExecutor(6) as threads:
            for got in threads.map(work, range(6)):
                np.testing.assert_allclose(got, np.ones((30, 2, 1)), rtol=1e-6)


class TestWhatIsMissing:
    @pytest.mark.parametrize(
        ("outputs", "task", "explained"),
        [
            (["logits"], "embed", "pooled"),
            (["last_hidden_state"], "embed", "pooled"),  # and no pooling is known
            (["sentence_embedding"], "pool", "pooled"),
            (["pooled"], "score", "logits"),
            (["pooled"], "maxsim", "last_hidden_state"),
            (["unnamed"], "embed", "unnamed"),
        ],
    )
    def test_it_is_explained(self, backend, outputs, task, explained):
        """What a graph cannot give is said with the outputs it has and those it needs."""
        batch = replace(ROWS, task=task, shared_ids=np.array([1]) if task == "maxsim" else None)
        with pytest.raises(ModelCorrupt, match=explained) as caught:
            backend(*outputs).run(batch)
        assert outputs[0] in str(caught.value)

    def test_late_interaction_without_a_query(self, backend):
        """A late-interaction batch without a query is refused."""
        with pytest.raises(ModelCorrupt, match="query"):
            backend("last_hidden_state").run(replace(ROWS, task="maxsim"))


class TestItself:
    @pytest.mark.parametrize(
        ("outputs", "expected"),
        [
            (["sentence_embedding"], 4),
            (["pooled"], 4),
            (["last_hidden_state"], 4),
            (["unnamed"], 4),
            (["logits"], None),
        ],
    )
    def test_dimension(self, backend, outputs, expected):
        """The length of the vectors is told where the graph states it."""
        assert backend(*outputs).dimension == expected

    def test_closing(self, backend):
        """After closing, twice at that, nothing runs."""
        closed = backend("pooled")
        closed.close()
        closed.close()
        with pytest.raises(DeviceUnavailable):
            closed.run(ROWS)
