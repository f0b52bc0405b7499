"""Cards for folders of one's own: what the files say, what card.toml adds."""

from __future__ import annotations

import json

import onnx
import pytest
from onnx import numpy_helper

from graph_kit import FLOAT, write_export, write_graph
from resilient_ai._models.catalogue import builtin_catalogue
from resilient_ai._models.folders import card_from_folder
from resilient_ai._models.store import ModelStore
from resilient_ai.errors import ConfigurationError, ModelNotFound


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def modules(*names):
    return [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{name}" if number else "",
            "type": f"x.{name}",
        }
        for number, name in enumerate(names)
    ]


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
            "modules.json": modules("Transformer", "Pooling", "Normalize"),
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
    config = {"model_type": "bert", "hidden_size": 4, "architectures": ["BertModel"]}
    folder = write(tmp_path / "p", **{"tokenizer.json": "{}", "model.safetensors": "", "config.json": config})
    with pytest.raises(ConfigurationError, match=r'card\.toml, such as: pooling = "mean"'):
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


def export(folder, *outputs, files=None, **options):
    """A folder with a graph of the kit, a tokenizer, and what else is given."""
    write(folder, **{"tokenizer.json": "{}", **(files or {})})
    write_export(folder / "model.onnx", *outputs, **options)
    return folder


TOKENS = ("last_hidden_state", FLOAT, "tokens")


class TestGraphs:
    def test_a_graph_that_pools_says_all(self, tmp_path):
        """A graph that gives vectors needs no card at all: kind and dimension are its own."""
        card = card_from_folder(export(tmp_path / "m", ("sentence_embedding", FLOAT, "first"), cache=2))
        assert (card.kind, card.family, card.dimension, card.pooling) == ("embedding", "onnx", 4, None)
        assert [file.role for file in card.files] == ["tokenizer", "graph"]

    def test_token_vectors_need_a_pooling(self, tmp_path):
        """A graph of token vectors asks for the pooling, and a line of the card answers."""
        folder = export(tmp_path / "m", TOKENS)
        with pytest.raises(ConfigurationError, match=r"cls, mean, max, last_token.*such as: pooling = "):
            card_from_folder(folder)
        write(folder, **{"card.toml": 'pooling = "last_token"'})
        assert card_from_folder(folder).pooling == "last_token"

    def test_a_wrong_dimension(self, tmp_path):
        """A card that the graph contradicts is told with the right line."""
        folder = export(tmp_path / "m", TOKENS, files={"card.toml": 'pooling = "cls"\ndimension = 384'})
        with pytest.raises(ConfigurationError, match=r"vectors of 4, not 384.*dimension = 4"):
            card_from_folder(folder)

    def test_an_unknown_dimension(self, tmp_path):
        """So is one that nothing tells."""
        folder = export(tmp_path / "m", ("a", FLOAT, "first"), TOKENS, files={"card.toml": 'pooling = "cls"'})
        model = onnx.load(folder / "model.onnx")
        for output in model.graph.output:
            output.type.tensor_type.shape.dim[-1].dim_param = "width"
        onnx.save(model, folder / "model.onnx")
        with pytest.raises(ConfigurationError, match=r"how long its vectors are.*dimension = 768"):
            card_from_folder(folder)

    @pytest.mark.parametrize(
        ("outputs", "kind", "told"),
        [
            ([("logits", FLOAT, "first")], "embedding", 'gives logits, and no vectors.*kind = "reranker"'),
            ([TOKENS], "reranker", 'gives last_hidden_state, and no scores.*kind = "embedding"'),
            ([("a", FLOAT, "first"), ("b", FLOAT, "tokens")], "embedding", "gives a, b, and no vectors"),
        ],
    )
    def test_the_wrong_kind(self, tmp_path, outputs, kind, told):
        """What a graph cannot give it is not asked for."""
        with pytest.raises(ConfigurationError, match=told):
            card_from_folder(export(tmp_path / "m", *outputs), kind=kind)

    def test_scores(self, tmp_path):
        """A graph that gives scores and nothing else is a reranker's; its types are known by its inputs."""
        folder = write(tmp_path / "r", **{"tokenizer.json": "{}"})
        write_graph(folder / "model.onnx", "no_and_yes", type_ids=True)
        card = card_from_folder(folder)
        assert (card.kind, card.score, card.type_ids, card.dimension) == ("reranker", "sigmoid", True, None)

    @pytest.mark.parametrize(
        ("output", "kind", "dimension"),
        [
            (("embedding", FLOAT, "first"), "embedding", 4),
            (("hidden", FLOAT, "tokens"), "embedding", 4),
            (("score", FLOAT, "column"), "reranker", None),
        ],
    )
    def test_the_only_output(self, tmp_path, output, kind, dimension):
        """A graph's only output is known by its shape, whatever it is called."""
        folder = export(tmp_path / "m", output, files={"card.toml": 'pooling = "cls"'}, cache=1)
        if kind == "reranker":
            (folder / "card.toml").unlink()
        card = card_from_folder(folder)
        assert (card.kind, card.dimension) == (kind, dimension)

    def test_one_that_is_too_large_to_look_into(self, tmp_path, monkeypatch):
        """Of a graph with all its weights inside the other files and the card have to tell."""
        monkeypatch.setattr("resilient_ai._models.probing._LARGEST", 10)
        config = {"hidden_size": 4, "architectures": ["BertForSequenceClassification"], "type_vocab_size": 2}
        folder = export(tmp_path / "m", TOKENS, files={"config.json": config})
        assert (card_from_folder(folder).kind, card_from_folder(folder).type_ids) == ("reranker", True)
        with pytest.raises(ConfigurationError, match="pooling"):
            card_from_folder(folder, kind="embedding")
        assert card_from_folder(folder, kind="embedding", pooling="mean").dimension == 4

    def test_a_value_that_is_none(self, tmp_path):
        """A value that a card cannot have is told with the place to correct it."""
        folder = export(tmp_path / "m", TOKENS, files={"card.toml": 'pooling = "cls"\nmax_tokens = "many"'})
        with pytest.raises(
            ConfigurationError, match=r"max_tokens must be of type int.*Say it in .*card\.toml"
        ):
            card_from_folder(folder)

    def test_weights_in_files_of_any_name(self, tmp_path):
        """The files that a graph keeps its weights in belong to it, however they are called."""
        folder = export(tmp_path / "m", TOKENS, files={"card.toml": 'pooling = "cls"'})
        model = onnx.load(folder / "model.onnx")
        for tensor in model.graph.initializer:  # what lies outside has to be raw
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        onnx.save(
            model,
            folder / "model.onnx",
            save_as_external_data=True,
            location="odd name.bin",
            size_threshold=0,
        )
        card = card_from_folder(folder)
        assert {file.path: file.role for file in card.files}["odd name.bin"] == "graph-data"
        installed = ModelStore(tmp_path / "root").ensure(card)
        assert installed.nbytes == sum(
            (folder / name).stat().st_size for name in ("model.onnx", "odd name.bin")
        )

    def test_a_graph_takes_the_place_of_weights_that_are_none(self, tmp_path):
        """Where no graph can be built of the weights, the graph that is there is used."""
        config = {"model_type": "t5", "architectures": ["T5EncoderModel"], "hidden_size": 4}
        files = {"model.safetensors": "", "config.json": config, "card.toml": 'pooling = "mean"'}
        card = card_from_folder(export(tmp_path / "m", TOKENS, files=files))
        assert (card.family, card.bodies) == ("onnx", ("graph",))
        (tmp_path / "m" / "model.onnx").unlink()
        with pytest.raises(ConfigurationError, match="no graph can be built for 'model_type' 't5'"):
            card_from_folder(tmp_path / "m")

    def test_a_graph_in_a_folder_of_its_own(self, tmp_path):
        """The graph may lie in the folder `onnx`, and be called what it will when it is the only one."""
        folder = write(tmp_path / "m", **{"tokenizer.json": "{}", "onnx__x": ""})
        write_export(folder / "onnx" / "model_fp16.onnx", ("sentence_embedding", FLOAT, "first"))
        assert "onnx/model_fp16.onnx" in [file.path for file in card_from_folder(folder).files]


class TestRecipes:
    def test_like_another_one(self, tmp_path):
        """A model that was made from a known one has its recipe, but for what it says itself."""
        folder = export(
            tmp_path / "m", TOKENS, files={"card.toml": 'like = "qwen3emb"\ndefault_instruction = "mine"'}
        )
        card, known = card_from_folder(folder), builtin_catalogue().find("qwen3emb")
        for field in ("pooling", "query_prompt", "end_token", "max_tokens"):
            assert getattr(card, field) == getattr(known, field)
        assert (card.default_instruction, card.dimension, card.family) == ("mine", 4, "onnx")
        assert card.aliases == ()

    def test_like_nobody(self, tmp_path):
        """An unknown one is told with the nearest."""
        with pytest.raises(ModelNotFound, match="qwen3emb"):
            card_from_folder(export(tmp_path / "m", TOKENS), like="qwen3embed")

    def test_a_generative_reranker_needs_its_prompt(self, tmp_path):
        """A reranker that was made of a language model asks for what it reads around a pair."""
        config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
        files = {"tokenizer.json": "{}", "model.safetensors": "", "config.json": config}
        folder = write(tmp_path / "r", **files)
        with pytest.raises(ConfigurationError, match='such as: like = "qwen3_reranker"'):
            card_from_folder(folder)
        write(folder, **{"card.toml": 'like = "qwen3_reranker"'})
        card, known = card_from_folder(folder), builtin_catalogue().find("qwen3_reranker")
        assert (card.kind, card.pair_prompt, card.score) == ("reranker", known.pair_prompt, "sigmoid")

    def test_a_layer_on_top(self, tmp_path):
        """A layer that sentence-transformers runs after pooling is in no graph that is built here."""
        folder = sentence_transformers(tmp_path / "m")
        write(folder, **{"modules.json": modules("Transformer", "Pooling", "Dense")})
        with pytest.raises(ConfigurationError, match=r"modules\.json: no graph can be built with Dense"):
            card_from_folder(folder)

    def test_scores_as_their_authors_have_them(self, tmp_path):
        """A cross-encoder whose logit is its score is left as it is."""
        config = {
            "model_type": "bert",
            "architectures": ["BertForSequenceClassification"],
            "type_vocab_size": 2,
            "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
        }
        folder = write(
            tmp_path / "r", **{"tokenizer.json": "{}", "model.safetensors": "", "config.json": config}
        )
        card = card_from_folder(folder)
        assert (card.score, card.type_ids) == ("identity", True)

    @pytest.mark.parametrize(
        ("config", "said", "length"),
        [
            ({"max_position_embeddings": 514, "model_type": "xlm-roberta"}, {}, 512),
            ({"max_position_embeddings": 514, "model_type": "xlm-roberta"}, {"max_seq_length": 600}, 512),
            ({"max_position_embeddings": 8194, "model_type": "xlm-roberta"}, {"max_seq_length": 8192}, 8192),
            ({"max_position_embeddings": 128}, {}, 128),
            ({"n_positions": 40, "model_type": "nomic_bert"}, {}, 40),
            ({}, {}, 512),
        ],
    )
    def test_lengths(self, tmp_path, config, said, length):
        """The length is what is written down, but never more than the model has positions for."""
        files = {"config.json": config, "sentence_bert_config.json": said, "card.toml": 'pooling = "cls"'}
        assert card_from_folder(export(tmp_path / "m", TOKENS, files=files)).max_tokens == length

    def test_pooling_in_words(self, tmp_path):
        """Newer files name the pooling instead of marking it."""
        files = {"1_Pooling__config.json": {"pooling_mode": "lasttoken"}}
        assert card_from_folder(export(tmp_path / "m", TOKENS, files=files)).pooling == "last_token"
