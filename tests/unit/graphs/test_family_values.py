"""MPNet, NomicBERT and Qwen3 compute what their architectures say, whatever stands beside a text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_ai import errors
from resilient_ai._models.graphs import describe_graph, ensure_graph
from tiny_checkpoints import Tiny, collate
from tiny_families import VOCABULARY, MPNet, Nomic, Qwen

ort = pytest.importorskip("onnxruntime")

TOLERANCE = 2e-5


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    # As the library runs its own graphs: whole numbers are folded, operators are left as they are.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def graph_of(model, tmp_path, **options):
    folder = model.write(tmp_path / "model")
    defaults = {"family": model.family, "pooling": "mean", "head": "embedding"}
    return ensure_graph(folder, tmp_path / "cache", **{**defaults, **options})


def run(graph, feeds):
    names = [port.name for port in graph.get_outputs()]
    return dict(zip(names, graph.run(names, feeds), strict=True))


def unit(vector):
    return vector / np.linalg.norm(vector)


def texts_for(model, rows=5, seed=0):
    """Texts of mixed lengths, the longest and the shortest possible among them."""
    rng = np.random.default_rng(seed)
    lengths = [model.longest, 1, *rng.integers(2, model.longest, rows - 2)]
    return [[int(i) for i in rng.integers(0, model.vocab, length)] for length in lengths]


MODELS = {
    "mpnet": lambda: MPNet(seed=1),
    "mpnet-prefixed": lambda: MPNet(seed=2, prefix="mpnet.", layers=1, heads=8),
    "nomic": lambda: Nomic(seed=3),
    "nomic-renamed": lambda: Nomic(seed=4, renamed=True, prefix="nomic_bert."),
    "nomic-partly-turned": lambda: Nomic(seed=5, config={"rotary_emb_fraction": 0.5}),
    "nomic-interleaved": lambda: Nomic(seed=6, config={"rotary_emb_interleaved": True}),
    "qwen": lambda: Qwen(seed=7),
    "qwen-prefixed": lambda: Qwen(seed=8, prefix="model.", tied=False, layers=3),
    "qwen-one-key-head": lambda: Qwen(seed=9, key_heads=1),
    "qwen-equal-heads": lambda: Qwen(seed=10, key_heads=4, size=8),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last_token"])
@pytest.mark.parametrize("token_outputs", [None, True])
def test_outputs_equal_the_reference(name, pooling, token_outputs, tmp_path):
    """Every output equals a float64 computation of one text at a time."""
    model = MODELS[name]()
    graph = session(graph_of(model, tmp_path, pooling=pooling, token_outputs=token_outputs))
    texts = texts_for(model)
    got = run(graph, collate(texts))
    assert ("token_embeddings" in got) == (
        pooling in {"mean", "max"} if token_outputs is None else token_outputs
    )
    for row, text in enumerate(texts):
        wanted = model.pooled(text, pooling)
        np.testing.assert_allclose(got["pooled"][row], wanted, atol=TOLERANCE)
        np.testing.assert_allclose(got["sentence_embedding"][row], unit(wanted), atol=TOLERANCE)
        if "token_embeddings" in got:
            states = got["token_embeddings"][row, : len(text)]
            np.testing.assert_allclose(states, model.hidden_states(text), atol=TOLERANCE)


@pytest.mark.parametrize("device", ["any", "cpu"])
@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("qwen")])
def test_both_ways_of_causal_attention_are_exact(name, device, tmp_path):
    """The operator of the CPU alone and the one that all devices have give the reference's vectors."""
    model = MODELS[name]()
    graph = session(graph_of(model, tmp_path, pooling="last_token", device=device))
    texts = texts_for(model, seed=1)
    got = run(graph, collate(texts))["sentence_embedding"]
    np.testing.assert_allclose(
        got, [unit(model.pooled(text, "last_token")) for text in texts], atol=TOLERANCE
    )


def operators(path):
    import onnx

    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


def test_a_float32_decoder_runs_on_every_device(tmp_path):
    """Grouped attention, which CUDA has in half precision only, is in the graphs that may use it."""
    used = {
        (precision, device): operators(graph_of(Qwen(), tmp_path, precision=precision, device=device))
        for precision in ("fp32", "fp16")
        for device in ("any", "cpu")
    }
    grouped = {key for key, found in used.items() if "GroupQueryAttention" in found}
    assert grouped == {("fp32", "cpu"), ("fp16", "any"), ("fp16", "cpu")}
    assert "MultiHeadAttention" in used["fp32", "any"]


RERANKERS = {
    "mpnet": lambda: MPNet(seed=1, classifier=True, prefix="mpnet."),
    "qwen-tied": lambda: Qwen(seed=2, prefix="model."),
    "qwen-own-rows": lambda: Qwen(seed=3, prefix="model.", tied=False),
    "qwen-one-label": lambda: Qwen(seed=4, prefix="model.", labels=1),
}


@pytest.mark.parametrize("name", RERANKERS)
@pytest.mark.parametrize("device", ["any", "cpu"])
def test_scores_equal_the_reference(name, device, tmp_path):
    """A reranker's logit equals the reference, one a row."""
    model = RERANKERS[name]()
    graph = session(graph_of(model, tmp_path, head="score", pooling=None, device=device))
    texts = texts_for(model, seed=2)
    got = run(graph, collate(texts))["logits"]
    assert got.shape == (len(texts), 1)
    np.testing.assert_allclose(got[:, 0], [model.score(text) for text in texts], atol=TOLERANCE)


def test_the_answers_can_be_other_words(tmp_path):
    """The two words a reranker chooses between are the caller's, their ids the tokenizer's."""
    model = Qwen(seed=5)
    path = graph_of(model, tmp_path, head="score", pooling=None, answers=("maybe", "no"))
    got = run(session(path), collate([[4, 5, 6]]))["logits"]
    assert got[0, 0] == pytest.approx(model.score([4, 5, 6], ("maybe", "no")), abs=TOLERANCE)


def test_an_answer_that_is_no_token_is_refused(tmp_path):
    """A word the tokenizer splits, or one beyond the weights' rows, is named."""
    with pytest.raises(errors.ConfigurationError, match="'perhaps'"):
        graph_of(Qwen(), tmp_path, head="score", pooling=None, answers=("yes", "perhaps"))
    with pytest.raises(errors.ConfigurationError, match="'yes'"):
        graph_of(Qwen(vocab=VOCABULARY["yes"]), tmp_path, head="score", pooling=None)


@pytest.mark.parametrize("text", ["[]", "{}", '{"model": []}', '{"model": {"vocab": ["yes", "no"]}}', "?"])
def test_a_tokenizer_without_a_vocabulary_is_refused(text, tmp_path):
    """What is no tokenizer is corrupt, by the name of its file."""
    folder = Qwen().write(tmp_path / "model")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(errors.ModelCorrupt, match=r"tokenizer\.json"):
        ensure_graph(folder, tmp_path / "cache", family="qwen3", pooling=None, head="score")


def test_a_reranker_needs_its_tokenizer(tmp_path):
    """Without tokenizer.json nobody knows the ids of the answers; an embedder does not ask."""
    folder = Qwen().write(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    ensure_graph(folder, tmp_path / "cache", family="qwen3", pooling="last_token", head="embedding")
    with pytest.raises(errors.ModelNotFound, match=r"tokenizer\.json"):
        ensure_graph(folder, tmp_path / "cache", family="qwen3", pooling=None, head="score")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One graph of each family, with the pooling its models use."""
    wanted = {"mpnet": "mean", "nomic": "mean", "qwen": "last_token"}
    graphs = {}
    for name, pooling in wanted.items():
        model = MODELS[name]()
        graphs[name] = model, session(graph_of(model, tmp_path_factory.mktemp(name), pooling=pooling))
    qwen = MODELS["qwen"]()
    path = graph_of(qwen, tmp_path_factory.mktemp("cpu"), pooling="last_token", device="cpu")
    return graphs | {"qwen for the CPU": (qwen, session(path))}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_neighbours_and_padding_do_not_matter(built, data):
    """A text has the same vector alone and in any batch, at any place, with any padding."""
    for model, graph in built.values():
        most = min(model.longest, 40)
        token = st.integers(0, model.vocab - 1)
        texts = data.draw(st.lists(st.lists(token, min_size=1, max_size=most), min_size=1, max_size=5))
        place = data.draw(st.integers(0, len(texts) - 1))
        longest = data.draw(st.integers(max(map(len, texts)), most))
        alone = run(graph, collate([texts[place]]))["sentence_embedding"][0]
        beside = run(graph, collate(texts, pad=data.draw(token), to=longest))["sentence_embedding"][place]
        assert abs(alone - beside).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["mpnet", "nomic", "qwen", "qwen for the CPU"])
def test_a_row_of_padding_stays_finite_and_alone(built, name):
    """A row without any real token gives no NaN, and leaves the other rows as they are."""
    model, graph = built[name]
    got = run(graph, collate([[7, 8, 9], [], [4, 5]]))
    assert all(np.isfinite(values).all() for values in got.values())
    pooling = "last_token" if model.family == "qwen3" else "mean"
    for row, text in ((0, [7, 8, 9]), (2, [4, 5])):
        np.testing.assert_allclose(got["pooled"][row], model.pooled(text, pooling), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["mpnet", "nomic", "qwen", "qwen for the CPU"])
def test_a_text_that_is_too_long_is_an_error_not_a_wrong_vector(built, name):
    """A row with more tokens than positions makes the run fail."""
    model, graph = built[name]
    with pytest.raises(Exception, match=r"RotaryEmbedding|embeddings/placed"):
        run(graph, collate([[5] * (model.longest + 1)]))


@pytest.mark.parametrize("name", ["mpnet", "nomic", "qwen"])
def test_a_graph_tells_how_long_a_text_may_be(name, tmp_path):
    """The longest text is in the file, for readers who do not have the configuration."""
    model = MODELS[name]()
    metadata = describe_graph(graph_of(model, tmp_path)).metadata
    assert metadata["max_tokens"] == str(model.longest)
    assert metadata["family"] == model.family


def test_a_long_rows_angles_are_its_own(tmp_path):
    """Where angles slow down for long texts, a short text beside a long one keeps its own."""
    scaled = {"rotary_scaling_factor": 2, "max_trained_positions": 16}
    model = Nomic(seed=11, config=scaled)
    graph = session(graph_of(model, tmp_path))
    texts = [[int(i) for i in np.random.default_rng(n).integers(0, 100, n)] for n in (60, 5, 16, 17, 33)]
    got = run(graph, collate(texts))["pooled"]
    np.testing.assert_allclose(got, [model.pooled(text, "mean") for text in texts], atol=TOLERANCE)
    plain = Nomic(seed=11).pooled(texts[0], "mean")
    assert abs(plain - got[0]).max() > 100 * TOLERANCE


HALVES = [
    Tiny(seed=1),
    Tiny(seed=2, act="relu"),
    Tiny(seed=3, act="gelu_new"),
    Tiny(family="xlm-roberta", types=1, seed=4),
    *(MODELS[name]() for name in ("mpnet", "nomic", "qwen", "nomic-partly-turned")),
]


@pytest.mark.parametrize("model", HALVES, ids=lambda m: f"{m.family}-{m.seed}")
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last_token"])
def test_half_precision_keeps_the_vectors(model, pooling, tmp_path):
    """Weights of half the size give vectors of cosine 0.9995 at least, in float32."""
    graphs = [
        session(graph_of(model, tmp_path, pooling=pooling, precision=precision, token_outputs=True))
        for precision in ("fp32", "fp16")
    ]
    feeds = collate(texts_for(model))
    wanted, got = (run(graph, feeds) for graph in graphs)
    assert {value.dtype for value in got.values()} == {np.dtype(np.float32)}
    cosines = (got["sentence_embedding"] * wanted["sentence_embedding"]).sum(1)
    assert cosines.min() >= 0.9995
    assert abs(got["pooled"] - wanted["pooled"]).max() > 0


@pytest.mark.parametrize("name", RERANKERS)
def test_half_precision_keeps_the_scores(name, tmp_path):
    """The head computes in float32 whatever the body does."""
    model = RERANKERS[name]()
    graph = session(graph_of(model, tmp_path, head="score", pooling=None, precision="fp16"))
    texts = texts_for(model, seed=3)
    got = run(graph, collate(texts))["logits"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[:, 0], [model.score(text) for text in texts], atol=2e-2)


def test_half_precision_halves_the_weights(tmp_path):
    """Every matrix is stored in 16 bits."""
    model = Qwen(vocab=3000)
    sizes = {p: graph_of(model, tmp_path, precision=p).stat().st_size for p in ("fp32", "fp16")}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


def test_weights_beyond_half_precision_are_refused(tmp_path):
    """A weight too large for 16 bits is named, instead of becoming infinity."""
    model = Qwen()
    model.tensors["layers.1.mlp.up_proj.weight"][3, 4] = 7e4
    graph_of(model, tmp_path)
    with pytest.raises(errors.ConfigurationError, match=r"layers\.1\.mlp\.up_proj\.weight.*fp32"):
        graph_of(model, tmp_path, precision="fp16")
