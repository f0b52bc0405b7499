"""Broken, contradictory and unsupported checkpoints are refused by name, and leave nothing behind."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from resilient_ai import errors
from resilient_ai._models.graphs import ensure_graph
from resilient_ai._models.graphs.weights import Weights
from tiny_checkpoints import Tiny

QUERY = "encoder.layer.0.attention.self.query.weight"


def attempt(folder, cache, **options):
    defaults = {"family": "bert", "pooling": "mean", "head": "embedding"}
    return ensure_graph(folder, cache, **{**defaults, **options})


def refused(tiny, tmp_path, error, *words, **options):
    """Expect an error with all the words in its message, and no graph on disk."""
    folder, cache = tiny.write(tmp_path / "model"), tmp_path / "cache"
    with pytest.raises(error) as caught:
        attempt(folder, cache, **options)
    assert [word for word in words if word not in str(caught.value)] == []
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("name", sorted(Tiny(layers=1).tensors))
def test_a_missing_tensor_is_named(name, tmp_path):
    """Without any one of its tensors a model is refused, and the message names the tensor."""
    tiny = Tiny(layers=1)
    del tiny.tensors[name]
    refused(tiny, tmp_path, errors.ModelCorrupt, name)


@pytest.mark.parametrize("name", sorted(Tiny(layers=1, labels=1).tensors))
def test_a_tensor_of_another_shape_is_named(name, tmp_path):
    """A tensor with one row too many is refused with its name, file and shape."""
    tiny = Tiny(layers=1, labels=1)
    value = tiny.tensors[name]
    tiny.tensors[name] = np.concatenate([value, value[:1]])
    error = errors.ConfigurationError if name == "classifier.weight" else errors.ModelCorrupt
    words = (name, "model.safetensors", str(tiny.tensors[name].shape))
    refused(tiny, tmp_path, error, *words, head="score", pooling=None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 64),
        ("intermediate_size", 65),
        ("vocab_size", 99),
        ("max_position_embeddings", 512),
        ("type_vocab_size", 1),
        ("num_hidden_layers", 1),
        ("num_hidden_layers", 3),
        ("num_attention_heads", 5),
        ("hidden_size", "32"),
        ("hidden_size", True),
        ("num_hidden_layers", 0),
        ("layer_norm_eps", 0),
        ("layer_norm_eps", None),
    ],
)
def test_a_configuration_that_contradicts_the_weights_is_refused(field, value, tmp_path):
    """A wrong or contradictory field is named, unless a missing layer's tensor is."""
    tiny = Tiny()
    tiny.config[field] = value
    wanted = "encoder.layer.2" if (field, value) == ("num_hidden_layers", 3) else field
    refused(tiny, tmp_path, errors.ModelCorrupt, wanted)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "silu"),
        ("hidden_act", None),
        ("position_embedding_type", "relative_key"),
        ("model_type", "distilbert"),
        ("model_type", None),
    ],
)
def test_what_is_not_supported_is_a_matter_of_configuration(field, value, tmp_path):
    """An activation, position type or architecture without a builder is named with the supported ones."""
    tiny = Tiny()
    tiny.config[field] = value
    refused(tiny, tmp_path, errors.ConfigurationError, field, repr(value), "supported")


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "median"},
        {"precision": "fp8"},
        {"device": "cuda"},
        {"multi": True},
        {"pooling": None},
        {"head": "tokens"},
        {"head": "score"},
        {"head": "score", "pooling": None, "token_outputs": True},
        {"family": "t5"},
    ],
)
def test_options_that_make_no_graph_are_refused(options, tmp_path):
    """Unknown words, and words that do not go together, are the caller's error."""
    folder = Tiny().write(tmp_path / "model")
    with pytest.raises(errors.ConfigurationError):
        attempt(folder, tmp_path / "cache", **options)


def test_a_classifier_with_two_labels_is_no_reranker(tmp_path):
    """Two labels have no single score."""
    refused(Tiny(labels=2), tmp_path, errors.ConfigurationError, "one label", head="score", pooling=None)


def test_an_xlm_roberta_needs_positions_after_its_padding(tmp_path):
    """A position table that ends with the padding's own position is refused."""
    tiny = Tiny(family="xlm-roberta", types=1, positions=2)
    refused(tiny, tmp_path, errors.ModelCorrupt, "max_position_embeddings", family="xlm-roberta")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    """NaN or infinity in a tensor names the tensor."""
    tiny = Tiny()
    tiny.tensors[QUERY][3, 4] = value
    refused(tiny, tmp_path, errors.ModelCorrupt, QUERY, "NaN")


def test_whole_numbers_are_no_weights(tmp_path):
    """A tensor of integers is refused with its name and dtype."""
    tiny = Tiny()
    tiny.tensors[QUERY] = np.ones((32, 32), np.int64)
    refused(tiny, tmp_path, errors.ModelCorrupt, QUERY, "I64")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_files_are_named(missing, tmp_path):
    """A folder without configuration or weights says which one is not there."""
    folder = Tiny().write(tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(errors.ModelNotFound, match=missing):
        attempt(folder, tmp_path / "cache")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_configuration_that_is_no_json_object_is_refused(text, tmp_path):
    """What cannot be read as an object is corrupt."""
    folder = Tiny().write(tmp_path / "model")
    (folder / "config.json").write_bytes(text)
    with pytest.raises(errors.ModelCorrupt, match=r"config\.json"):
        attempt(folder, tmp_path / "cache")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 3000, 0.5, 0.999, -1])
def test_truncated_weights_are_refused(keep, tmp_path):
    """A file cut anywhere, in its length, header or data, is refused."""
    folder = Tiny().write(tmp_path / "model")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(errors.ModelCorrupt, match=r"model\.safetensors has \d+ bytes"):
        Weights(folder)


def test_bytes_after_the_end_are_refused(tmp_path):
    """A file that is longer than its header says is not the file it claims to be."""
    folder = Tiny().write(tmp_path / "model")
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(errors.ModelCorrupt, match="describes"):
        Weights(folder)


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        [],
        {"x": None},
        {"x": {}},
        {"x": ENTRY | {"dtype": "F31"}},
        {"x": ENTRY | {"dtype": ["F32"]}},
        {"x": ENTRY | {"shape": [2]}},
        {"x": ENTRY | {"shape": [-1, -1]}},
        {"x": ENTRY | {"shape": "a"}},
        {"x": ENTRY | {"data_offsets": [4, 0]}},
        {"x": ENTRY | {"data_offsets": [-4, 0]}},
        {"x": ENTRY | {"data_offsets": [0]}},
        {"x": ENTRY | {"data_offsets": [0, 4, 8]}},
        {"x": ENTRY | {"data_offsets": [4, 8]}},
        {"x": ENTRY | {"data_offsets": ["0", "4"]}},
    ],
    ids=repr,
)
def test_headers_that_make_no_sense_are_refused(header, tmp_path):
    """Whatever a header says, it is refused by type and never by accident."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    with pytest.raises(errors.ModelCorrupt, match=r"model\.safetensors"):
        Weights(tmp_path)


def test_half_precision_is_widened_exactly(tmp_path):
    """float16 and bfloat16 become the float32 numbers they stand for; float32 stays."""
    numbers = np.array([0.0, -0.0, 1.5, -3.25, 2.0**-14, 65504.0, 2.0**-24], np.float32)
    save_file({"a": numbers, "b": numbers.astype(np.float16)}, tmp_path / "model.safetensors")
    weights = Weights(tmp_path)
    np.testing.assert_array_equal(weights.tensors["a"].load(), numbers)
    np.testing.assert_array_equal(weights.tensors["b"].load(), numbers)

    bits = np.array([0x3F80, 0xBFC0, 0x0000, 0x7F7F, 0x0001], "<u2")
    text = json.dumps({"c": {"dtype": "BF16", "shape": [5], "data_offsets": [0, 10]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bits.tobytes())
    got = Weights(tmp_path).tensors["c"].load()
    np.testing.assert_array_equal(got, [1.0, -1.5, 0.0, (2 - 2**-7) * 2.0**127, 2.0**-133])


def shard(folder, tensors):
    """Replace the one weights file by two, and an index of them."""
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_give_the_same_graph_as_one_file(tmp_path):
    """The bytes of a graph depend on the weights, not on the files they come in."""
    tiny = Tiny()
    one, two = tiny.write(tmp_path / "one"), tiny.write(tmp_path / "two")
    shard(two, tiny.tensors)
    first, second = (attempt(folder, tmp_path / "cache") for folder in (one, two))
    assert first != second
    assert first.read_bytes() == second.read_bytes()


def test_a_missing_shard_is_named(tmp_path):
    """An index whose shard is absent names the shard."""
    tiny = Tiny()
    folder = tiny.write(tmp_path / "model")
    shard(folder, tiny.tensors)
    (folder / "b.safetensors").unlink()
    with pytest.raises(errors.ModelNotFound, match=r"b\.safetensors"):
        attempt(folder, tmp_path / "cache")


@pytest.mark.parametrize("index", ["{}", "[]", "?", '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}'])
def test_an_index_that_makes_no_sense_is_refused(index, tmp_path):
    """Also one that points out of the model's folder."""
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(errors.ModelCorrupt, match=r"index\.json"):
        Weights(tmp_path)


def test_the_first_names_of_layer_normalisation_are_known(tmp_path):
    """Checkpoints that say gamma and beta give the same graph as those that say weight and bias."""
    tiny = Tiny()
    new = attempt(tiny.write(tmp_path / "new"), tmp_path / "cache")
    names = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for name in list(tiny.tensors):
        for modern, first in names:
            if name.endswith(modern):
                tiny.tensors[name.replace(modern, first)] = tiny.tensors.pop(name)
    old = attempt(tiny.write(tmp_path / "old"), tmp_path / "cache")
    assert new.read_bytes() == old.read_bytes()
