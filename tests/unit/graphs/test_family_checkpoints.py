"""MPNet, NomicBERT and Qwen3 checkpoints that are broken or unsupported are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from resilient_ai import errors
from resilient_ai._models.graphs import ensure_graph
from tiny_families import MPNet, Nomic, Qwen

MODELS = {"mpnet": MPNet, "nomic-bert": Nomic, "qwen3": Qwen}


def attempt(model, tmp_path, **options):
    defaults = {"family": model.family, "pooling": "mean", "head": "embedding"}
    folder = model.write(tmp_path / "model")
    return ensure_graph(folder, tmp_path / "cache", **{**defaults, **options})


def refused(model, tmp_path, error, *words, **options):
    """Expect an error with all the words in its message, and no graph on disk."""
    with pytest.raises(error) as caught:
        attempt(model, tmp_path, **options)
    assert [word for word in words if word not in str(caught.value)] == []
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def tensors():
    return [(family, name) for family, make in MODELS.items() for name in make(layers=1).tensors]


@pytest.mark.parametrize(("family", "name"), tensors())
def test_a_missing_tensor_is_named(family, name, tmp_path):
    """Without any one of its tensors a model is refused, and the message names the tensor."""
    model = MODELS[family](layers=1)
    del model.tensors[name]
    refused(model, tmp_path, errors.ModelCorrupt, name)


@pytest.mark.parametrize(("family", "name"), tensors())
def test_a_tensor_of_another_shape_is_named(family, name, tmp_path):
    """A tensor with one row too many is refused with its name, file and shape."""
    model = MODELS[family](layers=1)
    value = model.tensors[name]
    model.tensors[name] = np.concatenate([value, value[:1]])
    words = (name, "model.safetensors", str(model.tensors[name].shape), "config.json")
    refused(model, tmp_path, errors.ModelCorrupt, *words)


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("mpnet", "hidden_size", 64),
        ("mpnet", "max_position_embeddings", 512),
        ("mpnet", "relative_attention_num_buckets", 16),
        ("mpnet", "num_hidden_layers", 1),
        ("nomic-bert", "n_embd", 64),
        ("nomic-bert", "n_inner", 64),
        ("nomic-bert", "n_layer", 1),
        ("nomic-bert", "n_head", 5),
        ("nomic-bert", "rotary_emb_base", 0),
        ("nomic-bert", "rotary_emb_fraction", 1.5),
        ("nomic-bert", "vocab_size", 99),
        ("nomic-bert", "layer_norm_epsilon", None),
        ("qwen3", "hidden_size", 64),
        ("qwen3", "head_dim", 8),
        ("qwen3", "head_dim", 15),
        ("qwen3", "num_key_value_heads", 3),
        ("qwen3", "num_key_value_heads", 4),
        ("qwen3", "intermediate_size", 64),
        ("qwen3", "num_hidden_layers", 1),
        ("qwen3", "vocab_size", 99),
        ("qwen3", "rms_norm_eps", 0),
        ("qwen3", "rope_theta", None),
    ],
)
def test_a_configuration_that_contradicts_the_weights_is_refused(family, field, value, tmp_path):
    """A wrong or contradictory field is named."""
    model = MODELS[family]()
    model.config[field] = value
    refused(model, tmp_path, errors.ModelCorrupt, field, "config.json")


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("mpnet", "hidden_act", "silu"),
        ("mpnet", "model_type", "bert"),
        ("nomic-bert", "activation_function", "gelu"),
        ("nomic-bert", "prenorm", True),
        ("nomic-bert", "qkv_proj_bias", True),
        ("nomic-bert", "use_rms_norm", True),
        ("nomic-bert", "rotary_emb_scale_base", 512),
        ("qwen3", "hidden_act", "gelu"),
        ("qwen3", "attention_bias", True),
        ("qwen3", "use_sliding_window", True),
        ("qwen3", "layer_types", ["full_attention", "sliding_attention"]),
        ("qwen3", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("qwen3", "rope_parameters", {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}),
    ],
)
def test_what_is_not_supported_is_a_matter_of_configuration(family, field, value, tmp_path):
    """A variant the graph would get wrong is named with what is supported."""
    model = MODELS[family]()
    model.config[field] = value
    refused(model, tmp_path, errors.ConfigurationError, field, "supported", "config.json")


def test_learned_positions_beside_rotary_ones_are_refused(tmp_path):
    """A NomicBERT with a table of positions is another model than the configuration tells."""
    model = Nomic()
    model.tensors["embeddings.position_embeddings.weight"] = np.zeros((40, 32), np.float32)
    refused(model, tmp_path, errors.ModelCorrupt, "position_embeddings", "rotary_emb_fraction")


def test_a_nomic_bert_is_no_reranker(tmp_path):
    """There is no head that would score."""
    refused(Nomic(), tmp_path, errors.ConfigurationError, "nomic-bert", head="score", pooling=None)


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        (MPNet(classifier=True), "classifier.dense.weight"),
        (MPNet(classifier=True), "classifier.out_proj.bias"),
        (Qwen(tied=False), "lm_head.weight"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.family,
)
def test_a_missing_head_is_named(model, missing, tmp_path):
    """A reranker without its last layer says which tensor is not there."""
    del model.tensors[missing]
    refused(model, tmp_path, errors.ModelCorrupt, missing, head="score", pooling=None)


def test_a_classifier_of_several_labels_is_refused(tmp_path):
    """Several labels have no single score."""
    refused(
        Qwen(labels=2),
        tmp_path,
        errors.ConfigurationError,
        "score.weight",
        "one label",
        head="score",
        pooling=None,
    )


def test_newer_configurations_keep_the_base_elsewhere(tmp_path):
    """The base of the angles is found in `rope_parameters` as well, and gives the same bytes."""
    old, new = Qwen(), Qwen()
    del new.config["rope_theta"]
    new.config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1000000}
    paths = [attempt(model, tmp_path / name) for name, model in (("old", old), ("new", new))]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("make", "prefix"), [(MPNet, "mpnet."), (Nomic, "bert."), (Nomic, "nomic_bert."), (Qwen, "model.")]
)
def test_the_name_before_the_names_does_not_matter(make, prefix, tmp_path):
    """A checkpoint of the bare model and one of the model with a head give the same bytes."""
    bare, headed = make(), make()
    headed.tensors = {prefix + name: value for name, value in bare.tensors.items()}
    paths = [attempt(model, tmp_path / name) for name, model in (("a", bare), ("b", headed))]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_shards_and_half_precision_sources_give_the_same_graph(tmp_path):
    """Weights in bfloat16 give the graph that the same numbers in float32 give."""
    import json
    import struct

    model = Qwen()
    for name, value in model.tensors.items():
        bits = value.view(np.uint32) & np.uint32(0xFFFF0000)
        model.tensors[name] = bits.view(np.float32)
    wide = attempt(model, tmp_path / "wide")
    header, content = {}, b""
    for name, value in model.tensors.items():
        halves = (value.view(np.uint32) >> 16).astype("<u2").tobytes()
        offsets = [len(content), len(content) + len(halves)]
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": offsets}
        content += halves
    folder = model.write(tmp_path / "narrow" / "model")
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content)
    narrow = ensure_graph(
        folder, tmp_path / "narrow" / "cache", family="qwen3", pooling="mean", head="embedding"
    )
    assert wide.read_bytes() == narrow.read_bytes()


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_that_names_no_weights_says_what_is_looked_for(kind, tmp_path):
    """The message has the names of all files that would do."""
    folder = Qwen().write(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    save_file({"x": np.ones(1, np.float32)}, folder / "adapter.safetensors")
    with pytest.raises(errors.ModelNotFound, match=kind.replace(".", r"\.")):
        ensure_graph(folder, tmp_path / "cache", family="qwen3", pooling="mean", head="embedding")
