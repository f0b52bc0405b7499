"""The registry: one load per model whatever happens, and honest answers about what is there."""

from __future__ import annotations

import threading

import pytest

from resilient_ai._models.cards import ModelCard, ModelFile
from resilient_ai._models.catalogue import Catalogue
from resilient_ai._models.keeping import LoadedModel, Origin
from resilient_ai._models.registry import ModelRegistry
from resilient_ai.errors import ConfigurationError, ModelNotFound, ServiceClosed

FILES = (ModelFile("tokenizer.json", "tokenizer"), ModelFile("model.safetensors", "weights"))


def embedding(name, **changes):
    fields = {"kind": "embedding", "family": "bert", "dimension": 4, "pooling": "cls", "files": FILES}
    return ModelCard(**{"name": name, **fields, **changes})


def reranker(name, **changes):
    return ModelCard(name=name, kind="reranker", family="bert", score="sigmoid", files=FILES, **changes)


CATALOGUE = Catalogue(
    [embedding("big", rank=1, aliases=("Org/Big",)), embedding("small", rank=2), reranker("judge", rank=1)]
)


class Loaded:
    """What the loader of these tests makes of a model."""

    def __init__(self, model):
        self.model = model
        self.closed = 0

    def close(self):
        self.closed += 1


class Clock:
    """Time that moves a second each time it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def root(tmp_path):
    """A folder with the model "small" in it."""
    for name in ("tokenizer.json", "model.safetensors"):
        path = tmp_path / "models" / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "models"


def registry(root, loader=Loaded):
    return ModelRegistry(root, offline=True, loader=loader, catalogue=CATALOGUE, clock=Clock())


def test_list_is_in_rank_order(root):
    """All cards are listed, best rank first."""
    assert [card.name for card in registry(root).list()] == ["big", "judge", "small"]


def test_best_is_the_best_of_what_is_there(root):
    """The best model is one whose files are at hand, not the best of the catalogue."""
    assert registry(root).best_embedding_model().name == "small"


def test_no_model_at_hand_names_the_command(root):
    """When no model of a kind is at hand, the error has the command that fetches the best one."""
    with pytest.raises(ModelNotFound, match="resilient-ai models pull judge"):
        registry(root).best_reranker_model()


def test_availability_is_asked_by_any_name(root):
    """Availability goes by name or alias, without case, and an unknown name is an error."""
    models = registry(root)
    assert [models.is_available("SMALL"), models.is_available("org/big")] == [True, False]
    with pytest.raises(ModelNotFound):
        models.is_available("nobody")


def test_twenty_threads_load_once(root):
    """Twenty threads that load one model share one load and get the same object."""
    calls, barrier, got = [], threading.Barrier(20), []

    def loader(model):
        calls.append(model)
        return Loaded(model)

    models = registry(root, loader)

    def load():
        barrier.wait()
        got.append(models.load("small"))

    threads = [threading.Thread(target=load) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert [each is got[0] for each in got] == [True] * 20


def test_failed_load_reaches_all_and_is_forgotten(root):
    """Everybody who waits for a load that fails gets its error, and the next load tries again."""
    broken, barrier, calls, errors = [True], threading.Barrier(8), [], []

    def loader(model):
        calls.append(model)
        if broken:
            raise RuntimeError("no memory")
        return Loaded(model)

    models = registry(root, loader)

    def load():
        barrier.wait()
        with pytest.raises(RuntimeError, match="no memory") as caught:
            models.load("small")
        errors.append(caught.value)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One error per load that was run, however the threads fell upon them.
    assert (len(errors), len({id(error) for error in errors})) == (8, len(calls))
    broken.clear()
    assert models.load("small").model.card.name == "small"


def test_loading_holds_no_lock(root):
    """While one model is being loaded, everything else can be asked."""
    models = None

    def loader(model):
        return [models.list_loaded(), models.is_available("big"), models.unload(model.card.name)]

    models = registry(root, loader)
    assert models.load("small") == [[], False, False]


def test_loaded_gives_what_is_there_and_loads_nothing(root):
    """Asking for what is loaded never loads: nothing before, the same object after."""
    models = registry(root)
    assert models.loaded("small") is None
    assert models.load("small") is models.loaded("SMALL")


def test_list_loaded_says_since_when(root):
    """Loaded models are listed with the time they were there and how long it took."""
    models = registry(root)
    model = models.load("small").model
    size = len(b"model.safetensors")
    origin = Origin(models.get("small"), model.fingerprint, None, size)
    # The clock moves with each look: begun, loaded, leased, given back.
    assert models.list_loaded() == [LoadedModel("small", 2.0, 1.0, 4.0, 0, origin)]
    assert "loaded: small" in repr(models)


def test_unload_closes_once_and_load_makes_a_new_one(root):
    """Unloading closes the model; the next load makes another one."""
    models = registry(root)
    first = models.load("small")
    assert [models.unload("small"), models.unload("small"), first.closed] == [True, False, 1]
    assert models.load("small") is not first


def test_unload_takes_what_cannot_be_closed(root):
    """A loaded thing without `close` is simply forgotten."""
    models = registry(root, lambda _: 7)
    assert models.load("small") == 7
    assert models.unload("small")


def test_loading_without_a_loader_is_a_configuration_error(root):
    """A registry without a loader knows models but loads none."""
    with pytest.raises(ConfigurationError, match="loader"):
        ModelRegistry(root, catalogue=CATALOGUE).load("small")


def test_loading_what_cannot_be_had_is_not_remembered(root):
    """A model whose files cannot be had fails each time, and is never listed as loaded."""
    models = registry(root)
    for _ in range(2):
        with pytest.raises(ModelNotFound, match="big"):
            models.load("big")
    assert models.list_loaded() == []


def test_registered_card_is_known_and_a_loaded_model_keeps_its_own(root):
    """A card can be added or replaced; a model that is loaded keeps the one it was loaded with."""
    models = registry(root)
    models.register(embedding("own", rank=0))
    assert models.list()[0].name == "own"
    model = models.load("small")
    models.register(embedding("small", dimension=8))
    assert (models.get("small").dimension, models.loaded("small").model.card.dimension) == (8, 4)
    assert models.load("small") is model


def test_closing_ends_it(root):
    """A closed registry has let go of everything and loads nothing any more."""
    models = registry(root)
    model = models.load("small")
    models.close()
    models.close()
    assert (model.closed, models.list_loaded()) == (1, [])
    with pytest.raises(ServiceClosed):
        models.load("small")


def test_what_is_loaded_after_closing_is_closed(root):
    """A load that ends when the registry is closed gives nobody a model, and leaves none open."""
    made = []

    def loader(model):
        made.append(Loaded(model))
        models.close()
        return made[-1]

    models = registry(root, loader)
    with pytest.raises(ServiceClosed):
        models.load("small")
    assert [model.closed for model in made] == [1]


def test_a_model_that_cannot_be_closed_is_let_go(root, caplog):
    """What goes wrong in closing is logged: nobody needs that model any more."""

    class Stubborn:
        def close(self):
            raise RuntimeError("no")

    models = registry(root, lambda _: Stubborn())
    models.load("small")
    assert models.unload("small")
    assert "could not be closed" in caplog.text


def test_remove_unloads_and_deletes(root):
    """Removing a model closes it and deletes its files."""
    models = registry(root)
    model = models.load("small")
    assert models.remove("small") >= len(b"model.safetensors")
    assert (model.closed, models.is_available("small"), models.list_loaded()) == (1, False, [])


def test_pull_verify_and_path_speak_of_the_same_folder(root):
    """Pulling what is there returns it at once; its report is clean and its path is where it lies."""
    models = registry(root)
    assert (
        models.pull("small").folder == models.path("small") == models.verify("small").folder == root / "small"
    )
    assert models.verify("small").ok


def test_folder_of_ones_own_is_used_where_it_is(root, tmp_path):
    """A registered folder is loaded from its own place, and removing the model leaves it alone."""
    models = registry(root)
    card = models.register_folder(
        root / "small", name="mine", kind="embedding", dimension=4, pooling="mean", family="bert"
    )
    assert models.load("mine").model.folder == root / "small"
    models.remove("mine")
    assert (root / "small" / "model.safetensors").is_file()
    assert models.get("MINE") is card
