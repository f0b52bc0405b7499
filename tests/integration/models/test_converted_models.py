"""From a folder of weights to answers of a worker: each family, by the commands that a user has."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import resilient_ai as rai
from resilient_ai._adapters.cli import app
from resilient_ai._adapters.cli.session import Session
from tiny_checkpoints import Tiny
from tiny_families import MPNet, Nomic, Qwen
from tokenizer_kit import byte_tokenizer, small_tokenizer

pytestmark = pytest.mark.slow

TEXTS = ["the sun is warm", "rain", "a b c d and the sun"]
WORDS = small_tokenizer().get_vocab_size()
BYTES = byte_tokenizer(end=True).get_vocab_size()

EMBEDDERS = {
    "BertModel": (Tiny(vocab=WORDS), 'pooling = "mean"'),
    "XLMRobertaModel": (Tiny("xlm-roberta", vocab=WORDS), 'pooling = "cls"'),
    "MPNetModel": (MPNet(vocab=WORDS), 'pooling = "mean"'),
    "NomicBertModel": (Nomic(vocab=WORDS), 'pooling = "mean"\nquery_prompt = "search_query: {text}"'),
    "Qwen3Model": (Qwen(vocab=BYTES, positions=512), 'like = "qwen3emb"'),
}
RERANKERS = {
    "BertForSequenceClassification": (Tiny(vocab=WORDS, labels=1, prefix="bert."), ""),
    "MPNetForSequenceClassification": (MPNet(vocab=WORDS, classifier=True, prefix="mpnet."), ""),
    "Qwen3ForSequenceClassification": (
        Qwen(vocab=BYTES, positions=1024, labels=1, prefix="model."),
        'like = "qwen3_reranker"',
    ),
}


def converted(tmp_path, architecture, model, card):
    """The name under which the command has put a model's graph into the model folder."""
    model.config["architectures"] = [architecture]
    folder = model.write(tmp_path / "mine")
    tokenizer = byte_tokenizer(end=True) if model.family == "qwen3" else small_tokenizer()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "card.toml").write_text(card)
    arguments = ["models", "convert", str(folder), "--model-path", str(tmp_path / "models"), "--json"]
    result = CliRunner().invoke(app, arguments, obj=Session())
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["family"] == model.family
    return told["name"]


def services(tmp_path, **names):
    """A service with a worker, and one on the CPU alone."""
    options = {"model_path": tmp_path / "models", "offline": True, **names}
    on_worker, on_cpu = (rai.AISettings(**options, use_gpu=device) for device in ("simulated", "never"))
    return rai.AIService(on_worker), rai.AIService(on_cpu)


@pytest.mark.parametrize("architecture", EMBEDDERS)
def test_embedding(tmp_path, architecture):
    """The worker serves the vectors of the converted model, the very ones of the CPU."""
    worker, cpu = services(tmp_path, model_name=converted(tmp_path, architecture, *EMBEDDERS[architecture]))
    with worker, cpu:
        answer = worker.embed(TEXTS)
        assert set(answer.served_by) == {"simulated"}
        assert answer.vectors.shape == (3, 32)
        np.testing.assert_allclose(answer.vectors, cpu.embed(TEXTS).vectors, atol=2e-6)
        assert abs(answer.vectors[0] @ answer.vectors[1]) < 0.9999


@pytest.mark.parametrize("architecture", RERANKERS)
def test_reranking(tmp_path, architecture):
    """The worker serves the scores of the converted model, the very ones of the CPU."""
    worker, cpu = services(
        tmp_path, reranker_name=converted(tmp_path, architecture, *RERANKERS[architecture])
    )
    with worker, cpu:
        answer, other = (each.rerank("the sun", TEXTS) for each in (worker, cpu))
        assert set(answer.served_by) == {"simulated"}
        assert [each.index for each in answer] == [each.index for each in other]
        scores, others = ([each.score for each in ranking] for ranking in (answer, other))
        np.testing.assert_allclose(scores, others, atol=2e-6)
