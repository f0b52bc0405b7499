"""An int8 graph of a model: made, compared, and kept only where it agrees."""

from __future__ import annotations

import json

import numpy as np
import pytest

import resilient_ai as rai
from resilient_ai import composition
from resilient_ai._models.precisions import find_graph
from resilient_ai._models.registry import ModelRegistry
from resilient_ai._serving import quantizing
from resilient_ai._serving.choosing import choose_graph
from resilient_ai._serving.devices import Devices
from resilient_ai._serving.quantizing import quantize_model, sample_texts
from resilient_ai.errors import ConfigurationError, InvalidInput
from resilient_ai.settings import LATE_INTERACTION
from tokenizer_kit import small_tokenizer

pytestmark = pytest.mark.slow

HIDDEN, WIDE, LAYERS = 64, 128, 2
TEXTS = [f"{'the sun is warm ' * (n % 5)}rain {'a b c d '[: n % 8]}" for n in range(32)]


def write_bert(folder, *, labels=0):
    """Seeded weights of a BERT large enough to be worth quantising."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(small_tokenizer().to_str())
    vocabulary = small_tokenizer().get_vocab_size()
    config = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification" if labels else "BertModel"],
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": WIDE,
        "vocab_size": vocabulary,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    prefix = "bert." if labels else ""
    rng = np.random.default_rng(3)
    tensors = {}

    def dense(name, outs, ins):
        tensors[f"{name}.weight"] = (rng.normal(size=(outs, ins)) / np.sqrt(ins)).astype(np.float32)
        tensors[f"{name}.bias"] = np.zeros(outs, np.float32)

    def norm(name):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = (
            np.ones(HIDDEN, np.float32),
            np.zeros(HIDDEN, np.float32),
        )

    for table, rows in (("word", vocabulary), ("position", 64), ("token_type", 2)):
        values = rng.normal(size=(rows, HIDDEN)).astype(np.float32)
        tensors[f"{prefix}embeddings.{table}_embeddings.weight"] = values
    norm(f"{prefix}embeddings.LayerNorm")
    for layer in range(LAYERS):
        place = f"{prefix}encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            dense(f"{place}.attention.self.{part}", HIDDEN, HIDDEN)
        dense(f"{place}.attention.output.dense", HIDDEN, HIDDEN)
        dense(f"{place}.intermediate.dense", WIDE, HIDDEN)
        dense(f"{place}.output.dense", HIDDEN, WIDE)
        norm(f"{place}.attention.output.LayerNorm")
        norm(f"{place}.output.LayerNorm")
    if labels:
        dense("bert.pooler.dense", HIDDEN, HIDDEN)
        dense("classifier", labels, HIDDEN)
    save_file(tensors, folder / "model.safetensors")
    (folder / "card.toml").write_text("" if labels else 'pooling = "mean"')


@pytest.fixture(params=["embedding", "reranker"])
def installed(request, tmp_path):
    write_bert(tmp_path / "mine", labels=int(request.param == "reranker"))
    return ModelRegistry(tmp_path, offline=True).pull("mine")


def source_of(installed):
    return choose_graph(installed, "fp32", token_outputs=False).path


def test_it_is_kept_where_it_is_looked_for(installed):
    """The graph is smaller, agrees, and is found by the model's fingerprint; with other files it is not."""
    source = source_of(installed)
    assert find_graph(installed, "int8", source) is None
    made = quantize_model(installed, TEXTS)
    assert find_graph(installed, "int8", source) == made.graph
    assert made.recipe == "mixed"
    assert made.report.passed
    assert made.report.size_ratio < 0.6
    if installed.card.kind == "reranker":
        assert (made.report.task, made.report.texts) == ("score", 8 * (len(TEXTS) - 8))
    else:
        assert (made.report.task, made.report.texts) == ("embed", len(TEXTS))
    (installed.folder / "tokenizer.json").write_text(small_tokenizer().to_str() + " ")
    again = ModelRegistry(installed.folder.parent, offline=True).pull("mine")
    assert find_graph(again, "int8", source) is None


def test_one_that_does_not_agree(installed, monkeypatch):
    """A graph whose answers do not agree is refused and leaves nothing; by force it is kept."""
    real = quantizing.measure
    monkeypatch.setattr(quantizing, "measure", lambda *paths, **options: real(*paths, **options, limit=1.1))
    with pytest.raises(ConfigurationError, match="not good enough"):
        quantize_model(installed, TEXTS)
    assert find_graph(installed, "int8", source_of(installed)) is None
    assert not quantize_model(installed, TEXTS, force=True).report.passed
    assert find_graph(installed, "int8", source_of(installed)) is not None


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Makes settings for the model of that folder, alone."""

    def make(**values):
        values = {"use_gpu": "never", "reranker_name": LATE_INTERACTION, "cache_size": 0, **values}
        options = {"model_path": tmp_path, "model_name": "mine", "offline": True, "precision": "int8"}
        return rai.AISettings.load(environ={}, cwd=tmp_path, **{**options, **values})

    return make


@pytest.fixture
def embedder(tmp_path):
    write_bert(tmp_path / "mine")
    return ModelRegistry(tmp_path, offline=True).pull("mine")


class TestServed:
    """`AI_PRECISION=int8` in a service."""

    def test_only_what_was_made(self, embedder, settings):
        """Without an int8 graph the command for it is told; with one the CPU answers from it, whatever the batch."""
        with (
            rai.AIService(settings()) as service,
            pytest.raises(ConfigurationError, match="models quantize mine"),
        ):
            service.load()
        with rai.AIService(settings(precision="auto")) as service:
            exact = service.embed(TEXTS).vectors
        made = quantize_model(embedder, TEXTS, token_outputs=True)
        with rai.AIService(settings()) as service:
            found = service.embed(TEXTS).vectors
            alone = np.concatenate([service.embed([text]).vectors for text in TEXTS])
        assert 1e-6 < np.abs(found - exact).max() < 0.1
        assert (found * exact).sum(axis=1).min() == pytest.approx(made.report.cosine_min, abs=1e-4)
        np.testing.assert_allclose(alone, found, atol=1e-6)

    def test_beside_a_gpu(self, embedder, settings):
        """A GPU keeps its own graph, and int8 on the CPU agrees with it well enough for both to serve."""
        quantize_model(embedder, TEXTS, token_outputs=True)
        with rai.AIService(settings(precision="auto")) as service:
            exact = service.embed(TEXTS).vectors
        with rai.AIService(settings(use_gpu="simulated", gpu_in_process=True)) as service:
            found = service.embed(TEXTS)
            [model] = service.health().models
        assert model.device == "simulated"
        assert 0.99 < model.backends[0].agreement < 1
        np.testing.assert_allclose(found.vectors, exact, atol=1e-6)

    def test_a_published_graph(self, embedder, settings, gpu):
        """A finished int8 graph is known by its contents: it never goes to CUDA, and is not taken for fp32."""
        publish(embedder, quantize_model(embedder, TEXTS).graph)
        for precision in ("auto", "int8"):
            with rai.AIService(settings(use_gpu="always", precision=precision)) as service:
                service.load()
                health = service.health()
            assert gpu == []
            assert [backend.device for backend in health.models[0].backends] == ["cpu"]
            assert "CUDA has no MatMulIntegerToFloat" in " ".join(health.warnings)
        for precision in ("fp32", "fp16"):
            with (
                rai.AIService(settings(precision=precision)) as service,
                pytest.raises(ConfigurationError, match=r"finished graph in int8.*auto or int8"),
            ):
                service.load()
        with pytest.raises(ConfigurationError, match=r"model\.onnx is a graph of int8 already"):
            quantize_model(ModelRegistry(embedder.folder.parent, offline=True).pull("mine"), TEXTS)

    def test_int8_of_a_published_graph(self, embedder, settings, gpu):
        """A finished fp32 graph has its int8 graph beside it; the GPU is sent the finished one."""
        graph = publish(embedder, source_of(embedder))
        with (
            rai.AIService(settings(use_gpu="always")) as service,
            pytest.raises(ConfigurationError, match="models quantize mine"),
        ):
            service.load()
        made = quantize_model(ModelRegistry(embedder.folder.parent, offline=True).pull("mine"), TEXTS)
        with rai.AIService(settings(use_gpu="always")) as service:
            service.load()
            [model] = service.health().models
        assert gpu == [str(graph)]
        assert model.weight_bytes == made.graph.stat().st_size


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that only notes which graphs it was sent."""
    sent = []

    def note(spec):
        sent.append(spec.graph)
        return ()

    monkeypatch.setattr(composition, "_devices", lambda *_: Devices(note, cuda=True))
    return sent


def publish(installed, graph):
    """Make a model's folder one with a finished graph and no weights."""
    for file in installed.folder.glob("*.safetensors"):
        file.unlink()
    return graph.rename(installed.folder / "model.onnx")


def test_too_few_texts(installed):
    """A handful of texts tells nothing."""
    with pytest.raises(InvalidInput, match="at least 16"):
        quantize_model(installed, TEXTS[:15])


def test_texts_of_nobody():
    """Texts that are made up are the same each time, of many lengths, and enough."""
    texts = sample_texts()
    assert texts == sample_texts()
    assert len({len(text.split()) for text in texts}) > 20
    assert len(set(texts)) > 80
