"""A model's small files tell which graph its weights make, or that none can be made."""

from __future__ import annotations

import json

import pytest

from resilient_ai import errors
from resilient_ai._models.cards import BUILDABLE
from resilient_ai._models.graphs import Identity, ensure_graph, identify
from resilient_ai._models.graphs.families import FAMILIES
from tiny_checkpoints import Tiny
from tiny_families import MPNet, Nomic, Qwen

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}


def write(folder, config, *, modules=None, pooling=None, place="1_Pooling"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / "config.json").write_text(json.dumps(pooling))
    return folder


def config(model_type, architecture, **others):
    return {"model_type": model_type, "architectures": [architecture], **others}


@pytest.mark.parametrize(
    ("model_type", "architecture", "family", "head"),
    [
        ("bert", "BertModel", "bert", "embedding"),
        ("bert", "BertForMaskedLM", "bert", "embedding"),
        ("bert", "BertForSequenceClassification", "bert", "score"),
        ("roberta", "RobertaModel", "xlm-roberta", "embedding"),
        ("xlm-roberta", "XLMRobertaForSequenceClassification", "xlm-roberta", "score"),
        ("mpnet", "MPNetForMaskedLM", "mpnet", "embedding"),
        ("mpnet", "MPNetForSequenceClassification", "mpnet", "score"),
        ("nomic_bert", "NomicBertModel", "nomic-bert", "embedding"),
        ("qwen3", "Qwen3Model", "qwen3", "embedding"),
        ("qwen3", "Qwen3ForSequenceClassification", "qwen3", "score"),
    ],
)
def test_architectures_are_known(model_type, architecture, family, head, tmp_path):
    """Family and head follow from the configuration's own words."""
    found = identify(write(tmp_path / "m", config(model_type, architecture)))
    assert (found.architecture, found.family, found.head) == (architecture, family, head)


@pytest.mark.parametrize(
    ("flag", "pooling"),
    [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_lasttoken", "last_token"),
    ],
)
def test_pooling_is_what_the_pooling_module_says(flag, pooling, tmp_path):
    """One flag that is on, wherever the list of modules says that the module lies."""
    flags = dict.fromkeys(("pooling_mode_cls_token", "pooling_mode_mean_tokens"), False) | {flag: True}
    modules = [MODULES[0], MODULES[1] | {"path": "pool/here"}]
    folder = write(
        tmp_path / "m", config("bert", "BertModel"), modules=modules, pooling=flags, place="pool/here"
    )
    assert identify(folder) == Identity("BertModel", "bert", "embedding", pooling, False, multi=False)


@pytest.mark.parametrize(
    "pooling",
    [None, {}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}],
)
def test_what_the_files_do_not_say_is_not_guessed(pooling, tmp_path):
    """No pooling module, or one that says several things, leaves the pooling open."""
    found = identify(write(tmp_path / "m", config("bert", "BertModel"), pooling=pooling))
    assert (found.pooling, found.normalize) == (None, None)


def test_a_decoder_without_a_word_pools_its_last_token(tmp_path):
    """Only the last token of a decoder has seen the whole text."""
    assert identify(write(tmp_path / "m", config("qwen3", "Qwen3Model"))).pooling == "last_token"


def test_a_language_model_embeds_where_it_has_a_pooling_module_and_scores_elsewhere(tmp_path):
    """The same architecture is published for both; the modules beside it tell which it is."""
    words = config("qwen3", "Qwen3ForCausalLM")
    scores = identify(write(tmp_path / "a", words))
    embeds = identify(
        write(tmp_path / "b", words, modules=[*MODULES, NORMALIZE], pooling={"pooling_mode": "lasttoken"})
    )
    assert (scores.head, scores.pooling) == ("score", None)
    assert (embeds.head, embeds.pooling, embeds.normalize) == ("embedding", "last_token", True)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "t5", "architectures": ["T5EncoderModel"]}, "'t5'"),
        ({"architectures": ["BertModel"]}, "None"),
        (
            {"model_type": "bert", "architectures": ["BertForTokenClassification"]},
            "BertForTokenClassification",
        ),
        ({"model_type": "bert"}, "None"),
        ({"model_type": "bert", "architectures": [["BertModel"]]}, "BertModel"),
    ],
)
def test_what_cannot_be_built_is_told_with_what_can(fields, said, tmp_path):
    """An unknown architecture is named beside the list of the known ones."""
    with pytest.raises(errors.ConfigurationError, match="supported: ") as caught:
        identify(write(tmp_path / "m", fields))
    assert said in str(caught.value)
    assert "qwen3" in str(caught.value).lower()


def test_a_classifier_of_several_labels_is_no_reranker(tmp_path):
    """Two labels have no single score."""
    fields = config("bert", "BertForSequenceClassification", id2label={"0": "no", "1": "yes"})
    with pytest.raises(errors.ConfigurationError, match="2 labels"):
        identify(write(tmp_path / "m", fields))


def test_a_pooling_without_a_graph_is_refused(tmp_path):
    """A mode that no graph has is named."""
    flags = {"pooling_mode_weightedmean_tokens": True}
    with pytest.raises(errors.ConfigurationError, match="weightedmean"):
        identify(write(tmp_path / "m", config("bert", "BertModel"), modules=MODULES, pooling=flags))


@pytest.mark.parametrize("text", ["?", "{}", "[1]", '[{"path": "x"}]'])
def test_a_list_of_modules_that_is_none_is_corrupt(text, tmp_path):
    """The file is named, whatever it holds instead."""
    folder = write(tmp_path / "m", config("bert", "BertModel"))
    (folder / "modules.json").write_text(text)
    if text == "{}":
        assert identify(folder).pooling is None
        return
    with pytest.raises(errors.ModelCorrupt, match=r"modules\.json"):
        identify(folder)


def test_modules_cannot_lead_out_of_the_folder(tmp_path):
    """A path of the model's own that points elsewhere is as good as none."""
    write(tmp_path / "other", {"pooling_mode_cls_token": True})
    modules = [MODULES[0], MODULES[1] | {"path": "../other"}]
    assert identify(write(tmp_path / "m", config("bert", "BertModel"), modules=modules)).pooling is None


def test_a_folder_without_a_configuration_is_not_found(tmp_path):
    """The missing file is named."""
    with pytest.raises(errors.ModelNotFound, match=r"config\.json"):
        identify(tmp_path)


@pytest.mark.parametrize(
    ("model", "architecture"),
    [
        (Tiny(labels=1), "BertForSequenceClassification"),
        (Tiny(family="xlm-roberta", types=1), "XLMRobertaModel"),
        (MPNet(), "MPNetModel"),
        (Nomic(), "NomicBertModel"),
        (Qwen(prefix="model."), "Qwen3ForCausalLM"),
    ],
    ids=lambda x: getattr(x, "family", x),
)
def test_what_is_identified_is_built(model, architecture, tmp_path):
    """The words of an identity are those that make the graph."""
    model.config["architectures"] = [architecture]
    folder = model.write(tmp_path / "m")
    found = identify(folder)
    pooling = found.pooling or (None if found.head == "score" else "mean")
    path = ensure_graph(folder, tmp_path / "cache", family=found.family, pooling=pooling, head=found.head)
    assert path.is_file()


def test_every_family_can_be_identified(tmp_path):
    """No family is built that nobody could recognise, and cards know them all."""
    architectures = {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel"}
    architectures |= {"mpnet": "MPNetModel", "nomic_bert": "NomicBertModel", "qwen3": "Qwen3Model"}
    types = {name: family for family, known in FAMILIES.items() for name in known.model_types}
    found = {
        name: identify(write(tmp_path / name, config(name, architectures[name]))).family for name in types
    }
    assert found == types
    assert set(FAMILIES) == BUILDABLE


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "Qwen3-Embedding-0.6B",
            Identity("Qwen3ForCausalLM", "qwen3", "embedding", "last_token", True, multi=False),
        ),
        ("Qwen3-Reranker-0.6B", Identity("Qwen3ForCausalLM", "qwen3", "score", None, None, multi=False)),
        ("bge-m3", Identity("XLMRobertaModel", "xlm-roberta", "embedding", "cls", True, multi=True)),
        (
            "bge-reranker-v2-m3",
            Identity("XLMRobertaForSequenceClassification", "xlm-roberta", "score", None, None, multi=False),
        ),
    ],
)
def test_published_models_are_identified(name, wanted, shared_data):
    """The files that their authors publish say what they are."""
    assert identify(shared_data / name) == wanted
