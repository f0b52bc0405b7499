"""A reranker that reads prompts, from weights to scores: whether its documents share their query or not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import resilient_ai as rai
from tokenizer_kit import byte_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(110)]

TOLERANCE = 1e-5
QUERY = "how warm is the sun?"
DOCUMENTS = [
    "The sun is a star.",
    "",
    "\n\nIt rains; it is cold. " * 9,
    "<|im_end|> is text like any other",
    "5778 K",
    "a",
    "Das Öl ist warm 🌞",
]
HIDDEN, LAYERS, HEADS, KEY_HEADS, SIZE, WIDE = 32, 2, 4, 2, 16, 48


def write_reranker(folder):
    """A Qwen3 of random weights, with a tokenizer of bytes."""
    tokenizer = json.loads(byte_tokenizer().to_str())
    words = byte_tokenizer().get_vocab_size()
    tokenizer["model"]["vocab"] |= {"yes": words, "no": words + 1}
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": SIZE,
        "intermediate_size": WIDE,
        "vocab_size": words + 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
    }
    random = np.random.default_rng(0)
    tensors = {
        name: (random.normal(0, 0.15, shape) + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes(words + 2)
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "card.toml").write_text('like = "qwen3_reranker"')
    save_file(tensors, folder / "model.safetensors")


def shapes(words):
    yield "model.embed_tokens.weight", (words, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    for number in range(LAYERS):
        at = f"model.layers.{number}"
        for part, heads in (("q", HEADS), ("k", KEY_HEADS), ("v", KEY_HEADS)):
            yield f"{at}.self_attn.{part}_proj.weight", (heads * SIZE, HIDDEN)
        yield f"{at}.self_attn.o_proj.weight", (HIDDEN, HEADS * SIZE)
        for part in "qk":
            yield f"{at}.self_attn.{part}_norm.weight", (SIZE,)
        for part in ("gate", "up"):
            yield f"{at}.mlp.{part}_proj.weight", (WIDE, HIDDEN)
        yield f"{at}.mlp.down_proj.weight", (HIDDEN, WIDE)
        for part in ("input", "post_attention"):
            yield f"{at}.{part}_layernorm.weight", (HIDDEN,)


@pytest.fixture(params=["never", "simulated"])
def ai(request, tmp_path):
    write_reranker(tmp_path / "models" / "mine")
    settings = rai.AISettings.load(
        environ={},
        cwd=tmp_path,
        reranker_name="mine",
        model_path=tmp_path / "models",
        use_gpu=request.param,
        offline=True,
        parallel_workers=1,
        max_length=700,
        token_budget=256,
        verify="every",
    )
    with rai.AIService(settings) as made:
        yield made, {"never": "cpu", "simulated": "simulated"}[request.param]


def by_document(ranking):
    return np.array([each.score for each in sorted(ranking, key=lambda each: each.index)])


def test_the_scores_are_those_of_each_document_alone(ai):
    """Many documents score as each does by itself, count the same tokens, and the first device serves them."""
    ai, device = ai
    alone = [ai.rerank(QUERY, [document], raw_scores=True) for document in DOCUMENTS]
    together = ai.rerank(QUERY, DOCUMENTS, raw_scores=True)
    np.testing.assert_allclose(
        by_document(together), [each[0].score for each in alone], rtol=0, atol=TOLERANCE
    )
    assert together.token_counts.tolist() == [int(each.token_counts[0]) for each in alone]
    assert together.truncated.tolist() == [bool(each.truncated[0]) for each in alone]
    assert set(together.served_by) == {device}
    assert not together.degraded
    assert ai.registry.loaded("mine").shares_prefix


def test_queries_and_instructions_do_not_mix(ai):
    """Many calls at once, with queries and instructions of their own, each get their own scores."""
    ai, _ = ai
    asked = [(QUERY[: 5 + n], f"instruction {n % 3}") for n in range(12)]
    futures = [
        ai.submit_rerank(query, DOCUMENTS, instruction=instruction, raw_scores=True)
        for query, instruction in asked
    ]
    for (query, instruction), future in zip(asked, futures, strict=True):
        alone = ai.rerank(query, DOCUMENTS[:1], instruction=instruction, raw_scores=True)
        assert by_document(future.result(60))[0] == pytest.approx(alone[0].score, abs=TOLERANCE)
