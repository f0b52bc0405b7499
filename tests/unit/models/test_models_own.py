"""Models in folders of one's own: found by name, by everybody who has the model folder, and left alone."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest

from graph_kit import FLOAT, write_export
from resilient_ai._models.cards import ModelCard, PairPrompt
from resilient_ai._models.catalogue import builtin_catalogue
from resilient_ai._models.converting import card_toml
from resilient_ai._models.registry import ModelRegistry
from resilient_ai.errors import ConfigurationError, ModelCorrupt, ModelNotFound


def model_in(folder, *, card="", scale=1):
    """A folder with an embedding model of dimension 4."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text("{}" + " " * scale)
    (folder / "card.toml").write_text(card)
    write_export(folder / "model.onnx", ("sentence_embedding", FLOAT, "first"))
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "models"


def registry(root, loader=lambda installed: installed):
    return ModelRegistry(root, offline=True, loader=loader)


def names(models):
    return {card.name for card in models.list()} - {card.name for card in builtin_catalogue()}


class TestAdded:
    def test_for_everybody(self, root, tmp_path):
        """A folder that was added is known to every registry of this root, and used where it is."""
        home = model_in(tmp_path / "elsewhere", card='aliases = ["mine/too"]')
        card = registry(root).add_folder(home, name="mine")
        other = registry(root)
        assert other.get("MINE") == other.get("mine/too") == card
        assert (names(other), other.path("mine"), other.is_available("mine")) == ({"mine"}, home, True)
        assert other.load("mine").folder == home

    def test_added_again(self, root, tmp_path):
        """A name may be given to another folder."""
        registry(root).add_folder(model_in(tmp_path / "one"), name="mine")
        models = registry(root)
        models.get("mine")
        models.add_folder(model_in(tmp_path / "two"), name="mine")
        assert registry(root).path("mine") == models.path("mine") == tmp_path / "two"

    def test_removed(self, root, tmp_path):
        """A removed model is not known any more; its folder stays as it was."""
        home = model_in(tmp_path / "elsewhere")
        registry(root).add_folder(home)
        models = registry(root)
        models.load("elsewhere")
        models.remove("elsewhere")
        assert (names(registry(root)), (home / "model.onnx").is_file()) == (set(), True)

    def test_a_name_of_the_catalogue(self, root, tmp_path):
        """A name that the catalogue has is the catalogue's; the message has the command for another one."""
        home = model_in(tmp_path / "bge-m3")
        with pytest.raises(ConfigurationError, match=r"--name"):
            registry(root).add_folder(home)
        assert names(registry(root)) == set()

    def test_what_is_no_model(self, root, tmp_path):
        """What cannot be used is not added."""
        (tmp_path / "empty").mkdir()
        with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
            registry(root).add_folder(tmp_path / "empty")
        assert not (root / ".added" / "empty.toml").exists()

    def test_a_broken_note(self, root, caplog):
        """A note that says nothing is left out."""
        (root / ".added").mkdir(parents=True)
        (root / ".added" / "mine.toml").write_text("folder")
        assert names(registry(root)) == set()
        assert "mine.toml" in caplog.text


class TestInTheRoot:
    def test_known_by_its_name(self, root):
        """A folder in the root that holds a model needs nothing else to be known."""
        model_in(root / "mine", card='aliases = ["other"]')
        models = registry(root)
        assert models.get("mine").dimension == 4
        assert models.get("other").name == "mine"
        assert names(models) == {"mine"}

    def test_by_the_name_that_it_says(self, root):
        """One that says another name has that one."""
        model_in(root / "folder", card='name = "mine"')
        models = registry(root)
        assert (models.get("mine").name, names(models)) == ("mine", {"mine"})

    def test_it_is_not_ours(self, root):
        """Its files may change, and are neither put aside nor deleted."""
        home = model_in(root / "mine")
        models = registry(root)
        before = models.load("mine").fingerprint
        model_in(home, scale=2)
        assert models.replace("mine").close() is None
        assert models.loaded("mine").fingerprint != before
        models.remove("mine")
        assert sorted(path.name for path in home.iterdir()) == ["card.toml", "model.onnx", "tokenizer.json"]

    def test_a_pinned_file_that_is_another(self, root):
        """What its own card pins and is another file is damage, which only its owner can repair."""
        files = (
            '[{ path = "tokenizer.json", role = "tokenizer" }, '
            f'{{ path = "model.onnx", role = "graph", sha256 = "{"0" * 64}" }}]'
        )
        home = model_in(root / "mine", card=f"files = {files}")
        with pytest.raises(ModelCorrupt, match="damaged"):
            registry(root).load("mine")
        assert (home / "model.onnx").is_file()

    def test_one_that_cannot_be_used(self, root, caplog):
        """It is left out of the list with a word, and by its name it tells what is wrong."""
        model_in(root / "mine", card="dimension = 7")
        models = registry(root)
        assert names(models) == set()
        assert "dimension = 4" in caplog.text
        with pytest.raises(ConfigurationError, match=r"dimension = 4"):
            models.get("mine")

    def test_a_name_of_the_catalogue(self, root):
        """What the catalogue knows lies in the root as well, and is none of these."""
        model_in(root / "bge-m3")
        assert registry(root).get("bge-m3").dimension == 1024

    def test_in_another_registry(self, root):
        """A registry that takes over what another knows reads its folders again, too."""
        home = model_in(root / "mine")
        models, other = registry(root), registry(root)
        models.get("mine")
        other.know_as(models)
        other.load("mine")
        (home / "card.toml").write_text("max_tokens = 7")
        other.replace("mine")
        assert other.get("mine").max_tokens == 7

    def test_the_state_is_no_model(self, root):
        """Folders whose name begins with a dot are the registry's own."""
        model_in(root / ".partial")
        assert names(registry(root)) == set()


class TestCardFiles:
    @pytest.mark.parametrize("card", list(builtin_catalogue()), ids=lambda card: card.name)
    def test_what_is_written_is_read_again(self, card):
        """A card that is written as TOML is the same card when it is read."""
        plain = replace(card, files=(), sources=())
        assert ModelCard.from_table(tomllib.loads(card_toml(plain))) == plain

    def test_odd_texts(self):
        """So it is with every character that TOML does not take as it is."""
        odd = PairPrompt('"\\\x7f', "\n\t\u2028", "{}")
        card = ModelCard(
            name="odd", kind="reranker", family="onnx", score="sigmoid", pair_prompt=odd, query_share=0.5
        )
        assert ModelCard.from_table(tomllib.loads(card_toml(card))) == card
