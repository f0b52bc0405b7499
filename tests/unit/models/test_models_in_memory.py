"""Models in memory: leased, replaced under way, and closed when there are too many of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from resilient_ai._models.cards import ModelCard, ModelFile
from resilient_ai._models.catalogue import Catalogue
from resilient_ai._models.keeping import KeepRules
from resilient_ai._models.registry import ModelRegistry

WAIT = 20
FILES = (ModelFile("tokenizer.json", "tokenizer"), ModelFile("model.safetensors", "weights"))
SIZES = {"a": 100, "b": 200, "c": 300}


class Loaded:
    """What the loader of these tests makes: tells whether it was closed, and refuses work after it."""

    def __init__(self, installed):
        self.name = installed.card.name
        self.fingerprint = installed.fingerprint
        self.closed = threading.Event()

    def use(self):
        assert not self.closed.is_set(), "a closed model was used"
        return self.fingerprint

    def close(self):
        assert not self.closed.is_set(), "a model was closed twice"
        self.closed.set()


def card(name):
    return ModelCard(name=name, kind="embedding", family="bert", dimension=4, pooling="cls", files=FILES)


@pytest.fixture
def root(tmp_path):
    for name, size in SIZES.items():
        write(tmp_path, name, size)
    return tmp_path


def write(root, name, size, content=b"x"):
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(content * size)


def registry(root, loader=Loaded, **keep):
    made = ModelRegistry(root, offline=True, loader=loader, keep=KeepRules(**keep), catalogue=Catalogue(()))
    for name in SIZES:
        made.register_folder(root / name, kind="embedding", dimension=4, pooling="cls", family="bert")
    return made


def names(models):
    return [model.name for model in models.list_loaded()]


class TestLeases:
    def test_nothing_is_leased_that_is_not_loaded(self, root):
        """A lease never loads."""
        assert registry(root).lease("a") is None

    def test_a_lease_counts(self, root):
        """Who uses a model is counted; a lease may be given back twice and counts once."""
        models = registry(root)
        model = models.load("a")
        first, second = models.lease("a"), models.lease("A")
        assert (first.model, models.list_loaded()[0].users) == (model, 2)
        first.release()
        first.release()
        assert models.list_loaded()[0].users == 1
        with second as leased:
            assert leased is model
        assert models.list_loaded()[0].users == 0

    def test_unloading_waits_for_the_last_user(self, root):
        """A model that is unloaded is given to nobody any more, and closed when the last one is done."""
        models = registry(root)
        model = models.load("a")
        lease = models.lease("a")
        with ThreadPoolExecutor(1) as threads:
            unloaded = threads.submit(models.unload, "a")
            while models.lease("a") is not None:
                pass
            assert not model.closed.is_set()
            lease.release()
            assert unloaded.result(WAIT)
        assert model.closed.is_set()

    def test_unloading_waits_no_longer_than_it_may(self, root):
        """With a limit, a model is closed under who still uses it then."""
        models = registry(root)
        model, lease = models.load("a"), models.lease("a")
        assert models.unload("a", timeout=0.0)
        assert model.closed.is_set()
        lease.release()


class TestReplacing:
    def test_only_what_has_changed(self, root):
        """A model whose files and card are what they were stays; so does one that is not loaded."""
        models = registry(root)
        assert models.replace("a") is None
        model = models.load("a")
        assert models.replace("a") is None
        assert models.loaded("a") is model

    def test_new_files(self, root):
        """After the files changed another model takes the place, while who has the old one keeps it."""
        models = registry(root)
        old, lease = models.load("a"), models.lease("a")
        before = models.list_loaded()[0].origin
        write(root, "a", 150, b"y")
        retired = models.replace("a")
        new = models.loaded("a")
        after = models.list_loaded()[0].origin
        assert (new is old, new.fingerprint == old.fingerprint) == (False, False)
        assert (before.nbytes, after.nbytes, after.fingerprint) == (100, 150, new.fingerprint)
        assert lease.model is old
        retired.close(timeout=0.0)
        assert old.closed.is_set()
        assert not new.closed.is_set()

    def test_a_new_card(self, root):
        """So it does after the folder's card changed."""
        models = registry(root)
        models.load("a")
        (root / "a" / "card.toml").write_text("max_tokens = 64")
        models.replace("a").close()
        assert models.get("a").max_tokens == models.list_loaded()[0].origin.card.max_tokens == 64

    def test_by_force(self, root):
        """What has not changed is replaced if it must be."""
        models = registry(root)
        old = models.load("a")
        models.replace("a", force=True).close()
        assert models.loaded("a") is not old

    @pytest.mark.parametrize("broken", ["load", "check"])
    def test_one_that_is_no_good(self, root, broken):
        """A new model that cannot be loaded or does not pass leaves the present one where it is."""
        made = []

        def loader(installed):
            if made and broken == "load":
                raise RuntimeError("torn")
            made.append(Loaded(installed))
            return made[-1]

        def check(model):
            raise RuntimeError("wrong answers")

        models = registry(root, loader)
        old = models.load("a")
        write(root, "a", 150)
        with pytest.raises(RuntimeError):
            models.replace("a", check=check)
        assert models.loaded("a") is old
        assert [model.closed.is_set() for model in made] == [False, *([True] if broken == "check" else [])]

    def test_nobody_gets_one_that_is_not_proved(self, root):
        """While the new one is being checked, the old one is given out."""
        models, seen = registry(root), []
        old = models.load("a")
        write(root, "a", 150)
        models.replace("a", check=lambda new: seen.append((new, models.loaded("a")))).close()
        assert seen == [(models.loaded("a"), old)]

    def test_one_that_left_meanwhile(self, root):
        """When the old one was unloaded while the new one was loaded, there is nothing to replace."""
        made = []

        def loader(installed):
            if made:
                models.unload("a")
            made.append(Loaded(installed))
            return made[-1]

        models = registry(root, loader)
        models.load("a")
        write(root, "a", 150)
        assert models.replace("a") is None
        assert names(models) == []
        assert all(model.closed.is_set() for model in made)

    def test_under_use(self, root):
        """Eight threads use a model that is replaced again and again: none gets a closed or an older one."""
        models = registry(root)
        models.load("a")
        stop, errors, version = threading.Event(), [], [0]
        barrier = threading.Barrier(9)

        def use():
            barrier.wait()
            try:
                while not stop.is_set():
                    at_least = version[0]
                    with models.lease("a") as model:
                        model.use()
                        assert order.index(model.fingerprint) >= at_least
            except BaseException as exc:
                errors.append(exc)

        order = [models.loaded("a").fingerprint]
        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        barrier.wait()
        for round_ in range(1, 10):
            write(root, "a", 100 + round_)
            old = models.replace("a", check=lambda new: order.append(new.fingerprint))
            version[0] = round_
            old.close()
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(set(order)) == 10


class TestKeeping:
    def test_as_many_as_are_kept(self, root):
        """Above the number of models that are kept, the one used longest ago is closed."""
        models = registry(root, models=2)
        first = models.load("a")
        models.load("b")
        models.lease("a").release()
        models.load("c")
        assert names(models) == ["a", "c"]
        assert not first.closed.is_set()

    def test_one_in_use_stays(self, root):
        """A model in use is never closed; it goes when it is not used any more and still too many."""
        models = registry(root, models=1)
        model, lease = models.load("a"), models.lease("a")
        with models.held("b"):
            assert names(models) == ["a", "b"]
            lease.release()
            assert model.closed.wait(WAIT)
            assert names(models) == ["b"]

    def test_no_thread_to_unload_on(self, root, monkeypatch):
        """Where the system has no thread to give, what is too much stays until the next chance."""
        models = registry(root, models=1)
        model, lease = models.load("a"), models.lease("a")
        with models.held("b"):
            with monkeypatch.context() as patched:

                def refuse(_):
                    raise RuntimeError("can't start new thread")

                patched.setattr(threading.Thread, "start", refuse)
                lease.release()
            assert not model.closed.is_set()
            models.lease("a").release()
            assert model.closed.wait(WAIT)

    def test_the_next_use_loads_it_again(self, root):
        """A model that was closed is loaded again by whoever asks for it next."""
        models = registry(root, models=1)
        first = models.load("a")
        models.load("b")
        assert models.load("a") is not first

    def test_by_memory(self, root):
        """Room is made before a model is loaded, down to four fifths of the limit, by the size of its files."""
        models = registry(root, nbytes=500)
        models.load("a")
        models.load("b")
        assert names(models) == ["a", "b"]
        models.load("c")  # 600 in all: down to 400
        assert names(models) == ["c"]

    def test_what_the_model_itself_says(self, root):
        """What the loaded model says of its memory goes before what its files say."""

        class Heavy(Loaded):
            nbytes = 450

        models = registry(root, Heavy, nbytes=500)
        models.load("a")
        models.load("b")
        assert [(model.name, model.origin.nbytes) for model in models.list_loaded()] == [("b", 450)]

    def test_two_that_do_not_fit_together(self, root):
        """With room for one, eight threads that want two models all get on, and no use is of a closed one."""
        models, barrier = registry(root, models=1), threading.Barrier(8)

        def work(name):
            barrier.wait()
            for _ in range(100):
                with models.held(name) as model:
                    model.use()

        with ThreadPoolExecutor(8) as threads:
            for ended in [threads.submit(work, "ab"[n % 2]) for n in range(8)]:
                ended.result(WAIT)
        models.tidy()
        assert len(names(models)) <= 1
