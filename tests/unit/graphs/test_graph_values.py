"""The graphs compute what the architecture says, whatever stands beside a text in its batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_ai._models.graphs import ensure_graph
from tiny_checkpoints import Tiny, collate

ort = pytest.importorskip("onnxruntime")

TOLERANCE = 1e-5


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def graph_of(tiny, tmp_path, **options):
    folder = tiny.write(tmp_path / "model")
    defaults = {"family": tiny.family, "pooling": "mean", "head": "embedding"}
    return ensure_graph(folder, tmp_path / "cache", **{**defaults, **options})


def run(graph, feeds):
    names = [port.name for port in graph.get_outputs()]
    return dict(zip(names, graph.run(names, feeds), strict=True))


def unit(vector):
    return vector / max(np.linalg.norm(vector), 1e-12)


def random_texts(rng, tiny, rows):
    return [list(rng.integers(2, tiny.vocab, rng.integers(1, tiny.longest + 1))) for _ in range(rows)]


SHAPES = [
    Tiny(),
    Tiny(layers=3, heads=2, wide=48, seed=1),
    Tiny(layers=1, heads=1, wide=128, positions=9, seed=2),
    Tiny(hidden=48, heads=12, prefix="bert.", seed=3),
    Tiny(act="gelu_new", seed=4),
    Tiny(act="relu", seed=5),
    Tiny(family="xlm-roberta", types=1, seed=6),
    Tiny(family="xlm-roberta", types=1, prefix="roberta.", layers=3, seed=7),
]


@pytest.mark.parametrize("tiny", SHAPES, ids=lambda t: f"{t.family}-{t.hidden}x{t.layers}-{t.heads}h-{t.act}")
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("token_outputs", [None, False, True])
def test_outputs_equal_the_reference(tiny, pooling, token_outputs, tmp_path):
    """Every output equals a float64 computation of one text at a time."""
    graph = session(graph_of(tiny, tmp_path, pooling=pooling, token_outputs=token_outputs))
    texts = random_texts(np.random.default_rng(tiny.seed), tiny, 5)
    got = run(graph, collate(texts))
    assert ("token_embeddings" in got) == (pooling != "cls" if token_outputs is None else token_outputs)
    for row, text in enumerate(texts):
        wanted = tiny.pooled(text, pooling)
        np.testing.assert_allclose(got["pooled"][row], wanted, atol=TOLERANCE)
        np.testing.assert_allclose(got["sentence_embedding"][row], unit(wanted), atol=TOLERANCE)
        if "token_embeddings" in got:
            states = got["token_embeddings"][row, : len(text)]
            np.testing.assert_allclose(states, tiny.hidden_states(text), atol=TOLERANCE)


@pytest.mark.parametrize(
    "tiny", [Tiny(labels=1, prefix="bert."), Tiny(family="xlm-roberta", types=1, labels=1, prefix="roberta.")]
)
def test_scores_equal_the_reference(tiny, tmp_path):
    """A cross-encoder's logit equals the reference, token types included where the family has them."""
    graph = session(graph_of(tiny, tmp_path, head="score", pooling=None))
    rng = np.random.default_rng(8)
    pairs = random_texts(rng, tiny, 6)
    typed = tiny.family == "bert"
    types = [[int(i >= len(pair) // 2) * typed for i in range(len(pair))] for pair in pairs]
    feeds = collate(pairs)
    if typed:
        feeds["token_type_ids"] = collate(types)["input_ids"]
    assert {port.name for port in graph.get_inputs()} == set(feeds)
    got = run(graph, feeds)["logits"]
    assert got.shape == (6, 1)
    wanted = [tiny.score(pair, kind) for pair, kind in zip(pairs, types, strict=True)]
    np.testing.assert_allclose(got[:, 0], wanted, atol=TOLERANCE)


@pytest.fixture(scope="module")
def twin_graphs(tmp_path_factory):
    """One model with mean pooling over all tokens, and with cls pooling over the trimmed last layer."""
    folder = tmp_path_factory.mktemp("twins")
    tiny = Tiny(layers=3, seed=9)
    mean = session(graph_of(tiny, folder, pooling="mean"))
    return tiny, mean, session(graph_of(tiny, folder, pooling="cls"))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_neighbours_and_padding_do_not_matter(twin_graphs, data):
    """A text has the same vector alone and in any batch, at any place, with any padding."""
    tiny, *graphs = twin_graphs
    token = st.integers(0, tiny.vocab - 1)
    text = st.lists(token, min_size=1, max_size=tiny.longest)
    texts = data.draw(st.lists(text, min_size=1, max_size=6))
    place = data.draw(st.integers(0, len(texts) - 1))
    longest = data.draw(st.integers(max(map(len, texts)), tiny.longest))
    pad = data.draw(token)
    for graph in graphs:
        alone = run(graph, collate([texts[place]]))["sentence_embedding"][0]
        beside = run(graph, collate(texts, pad=pad, to=longest))["sentence_embedding"][place]
        assert abs(alone - beside).max() <= TOLERANCE


@pytest.mark.parametrize("length", [1, 2, 23, 24])
@pytest.mark.parametrize("rows", [1, 3])
def test_every_length_up_to_the_longest_runs(twin_graphs, length, rows):
    """One token and the longest text run, in a batch of one row and of several."""
    tiny, *graphs = twin_graphs
    texts = [[5 + row] * length for row in range(rows)]
    for graph, pooling in zip(graphs, ("mean", "cls"), strict=True):
        got = run(graph, collate(texts))["pooled"]
        wanted = [tiny.pooled(text, pooling) for text in texts]
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE)


def test_a_text_that_is_too_long_is_an_error_not_a_wrong_vector(twin_graphs):
    """A row with more tokens than positions makes the run fail."""
    tiny, *graphs = twin_graphs
    for graph in graphs:
        with pytest.raises(Exception, match="embeddings/placed"):
            run(graph, collate([[5] * (tiny.longest + 1)]))


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_a_row_of_padding_stays_finite_and_alone(pooling, tmp_path):
    """A row without any real token gives no NaN, and leaves the other rows as they are."""
    tiny = Tiny(seed=10)
    graph = session(graph_of(tiny, tmp_path, pooling=pooling))
    got = run(graph, collate([[7, 8, 9], [], [4, 5]]))
    assert all(np.isfinite(values).all() for values in got.values())
    np.testing.assert_allclose(got["pooled"][0], tiny.pooled([7, 8, 9], pooling), atol=TOLERANCE)
    np.testing.assert_allclose(got["pooled"][2], tiny.pooled([4, 5], pooling), atol=TOLERANCE)
    if pooling == "mean":
        assert not got["sentence_embedding"][1].any()


def test_a_vector_of_zeros_is_not_divided_by_zero(tmp_path):
    """A pooled vector of length zero is normalised to zeros."""
    tiny = Tiny()
    for part in ("weight", "bias"):
        tiny.tensors[f"encoder.layer.1.output.LayerNorm.{part}"][:] = 0
    got = run(session(graph_of(tiny, tmp_path)), collate([[3, 4]]))
    assert not got["sentence_embedding"].any()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_weights_in_a_file_of_their_own_give_the_same_values(pooling, tmp_path):
    """Inline or external, the weights are the same bit by bit."""
    tiny = Tiny(seed=11)
    inline = graph_of(tiny, tmp_path, pooling=pooling)
    apart = graph_of(tiny, tmp_path, pooling=pooling, inline_limit=0)
    assert apart.with_name(f"{apart.name}.data").is_file()
    feeds = collate([[3, 4, 5], [6]])
    first, second = run(session(inline), feeds), run(session(apart), feeds)
    np.testing.assert_array_equal(first["sentence_embedding"], second["sentence_embedding"])
