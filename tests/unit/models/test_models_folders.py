"""Cards for folders of one's own: what the files say, what card.toml adds."""

from __future__ import annotations

import json

import pytest

from resilient_ai._models.folders import card_from_folder
from resilient_ai.errors import ConfigurationError, ModelNotFound


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def sentence_transformers(folder):
    return write(
        folder,
        **{
            "tokenizer.json": "{}",
            "model.safetensors": "",
            "config.json": {
                "model_type": "bert",
                "hidden_size": 384,
                "architectures": ["BertModel"],
                "max_position_embeddings": 512,
            },
            "1_Pooling__config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
            "modules.json": [{"type": "x.Transformer"}, {"type": "x.Pooling"}, {"type": "x.Normalize"}],
            "sentence_bert_config.json": {"max_seq_length": 128},
            "config_sentence_transformers.json": {"prompts": {"query": "q: ", "document": ""}},
        },
    )


def test_sentence_transformers_folder_says_all(tmp_path):
    """A folder written by sentence-transformers needs no card file."""
    card = card_from_folder(sentence_transformers(tmp_path / "mine"))
    assert (card.name, card.kind, card.family, card.dimension, card.pooling) == (
        "mine",
        "embedding",
        "bert",
        384,
        "mean",
    )
    assert (card.max_tokens, card.normalize, card.query_prompt, card.document_prompt) == (
        128,
        True,
        "q: {text}",
        "{text}",
    )
    assert [source.kind for source in card.sources] == ["folder"]


def test_card_file_wins_over_files_and_arguments_over_both(tmp_path):
    """card.toml corrects what the files say, and the caller has the last word."""
    folder = write(
        sentence_transformers(tmp_path / "m"),
        **{"card.toml": 'pooling = "cls"\nmax_tokens = 64\nlicence = "MIT"'},
    )
    card = card_from_folder(folder, max_tokens=32, name=None)
    assert (card.pooling, card.max_tokens, card.licence, card.name) == ("cls", 32, "MIT", "m")


def test_cross_encoder_is_recognised(tmp_path):
    """A folder with a sequence classifier is a reranker."""
    config = {
        "model_type": "xlm-roberta",
        "architectures": ["XLMRobertaForSequenceClassification"],
        "type_vocab_size": 1,
    }
    folder = write(tmp_path / "r", **{"tokenizer.json": "{}", "model.safetensors": "", "config.json": config})
    card = card_from_folder(folder)
    assert (card.kind, card.score, card.type_ids, card.family) == (
        "reranker",
        "sigmoid",
        False,
        "xlm-roberta",
    )


def test_unknown_pooling_is_asked_for(tmp_path):
    """What cannot be known is asked for, with the file to write it in."""
    config = {"model_type": "bert", "hidden_size": 4}
    folder = write(tmp_path / "p", **{"tokenizer.json": "{}", "model.safetensors": "", "config.json": config})
    with pytest.raises(ConfigurationError, match=r"pooling.*card\.toml"):
        card_from_folder(folder)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model.safetensors": ""}, "no tokenizer.json"),
        ({"tokenizer.json": "{}"}, "neither"),
    ],
)
def test_folder_without_a_model(tmp_path, files, said):
    """A folder that lacks the tokenizer or the model says which."""
    with pytest.raises(ModelNotFound, match=said):
        card_from_folder(write(tmp_path / "x", **files))


@pytest.mark.parametrize(
    "files", [{"card.toml": "pooling ="}, {"config.json": "{"}, {"a.onnx": "", "b.onnx": ""}]
)
def test_broken_folder_is_a_configuration_error(tmp_path, files):
    """Files that cannot be read, or a choice nobody made, are said with the file's name."""
    folder = write(tmp_path / "x", **{"tokenizer.json": "{}", **files})
    with pytest.raises(ConfigurationError, match=str(folder)):
        card_from_folder(folder)


def test_missing_folder(tmp_path):
    """A folder that is not there is a model that is not there."""
    with pytest.raises(ModelNotFound, match="no folder"):
        card_from_folder(tmp_path / "nowhere")
