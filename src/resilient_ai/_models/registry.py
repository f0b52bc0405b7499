"""The public face of the models: what there is, what is at hand, what is loaded."""

from __future__ import annotations

import builtins
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from resilient_ai._models.cards import Body, Kind, ModelCard
from resilient_ai._models.catalogue import Catalogue, builtin_catalogue
from resilient_ai._models.installed import InstalledModel, VerifyReport
from resilient_ai._models.keeping import KeepRules, LoadedModel, Origin
from resilient_ai._models.own import OwnModels
from resilient_ai._models.progress import Progress, silent
from resilient_ai._models.residents import Lease, Resident, Residents, Retired, close_model
from resilient_ai._models.store import ModelStore
from resilient_ai.errors import ConfigurationError, ModelNotFound

__all__ = ["Loader", "ModelRegistry"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

Loader = Callable[[InstalledModel], T]


class ModelRegistry(Generic[T]):
    """Knows models by name, brings their files and keeps what a loader makes of them.

    Safe for threads; no lock is held while files are fetched or a loader runs. `loader` turns
    an `InstalledModel` into whatever the caller works with (T); without one, `load` refuses.
    Names are looked up with their aliases and without regard to case, and an unknown one is
    `ModelNotFound` everywhere. Folders in `root` that hold a model are known by their names.

    `keep` limits what stays in memory: beyond it, models that are not in use are closed, and loaded
    again when they are next asked for. Use a model through a `lease`, or it may be closed meanwhile.
    What the loader makes may tell in `nbytes` how much memory its weights take; else the size of their
    files is taken for it.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        mirror: str | None = None,
        offline: bool = False,
        state: Path | str | None = None,
        loader: Loader[T] | None = None,
        keep: KeepRules | None = None,
        catalogue: Catalogue | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = ModelStore(root, mirror=mirror, offline=offline, state=state)
        self._own = OwnModels(self.store.root)
        self._loader = loader
        self._clock = clock
        self._lock = threading.Lock()  # guards _catalogue and _tidying, never held over work
        self._catalogue = catalogue or builtin_catalogue()
        self._tidying = False
        self._residents: Residents[T] = Residents(keep or KeepRules(), on_crowd=self._tidy_soon, clock=clock)
        self._replacing = threading.Lock()  # held over a whole `replace`: one after another

    def __repr__(self) -> str:
        loaded = ", ".join(model.name for model in self.list_loaded()) or "nothing"
        return f"<ModelRegistry {self.store.root} {len(self._catalogue)} models, loaded: {loaded}>"

    def list(self) -> builtins.list[ModelCard]:
        """All cards, best rank first."""
        for card in self._own.cards(known=self._catalogue):
            self._learn(card)
        return [*self._catalogue]

    def get(self, name: str) -> ModelCard:
        """The card of a name or alias.

        Raises:
            ModelNotFound: nobody has the name; the message has the nearest ones.
            ConfigurationError: a folder has it, and what is in there is no model that can be used.
        """
        known = self._catalogue
        if name not in known and (card := self._own.find(name, known=known)) is not None:
            known = self._learn(card)
        return known.find(name)

    def names_of(self, names: Iterable[str]) -> set[str]:
        """The names of models that may be given by their aliases; raises as `get`."""
        return {self.get(name).name for name in names}

    def best_embedding_model(self) -> ModelCard:
        """The best-ranked embedding model whose files are at hand.

        Raises:
            ModelNotFound: none is; the message has the command that fetches one.
        """
        return self._best("embedding")

    def best_reranker_model(self) -> ModelCard:
        """The best-ranked reranker whose files are at hand.

        Raises:
            ModelNotFound: none is; the message has the command that fetches one.
        """
        return self._best("reranker")

    def is_available(self, name: str) -> bool:
        """Whether the model's files are on this machine; no network, no hashing."""
        return self.store.is_available(self.get(name))

    def register(self, card: ModelCard) -> None:
        """Add a card, or replace the one of the same name.

        A model that is loaded keeps the card it was loaded with until `replace`.

        Raises:
            ConfigurationError: an alias belongs to another model.
        """
        self._learn(card)

    def know_as(self, other: ModelRegistry[Any]) -> None:
        """Know every model that another registry knows, in place of one's own."""
        with self._lock:
            self._catalogue = other._catalogue
            self._own = other._own

    def register_folder(self, path: Path | str, *, name: str | None = None, **fields: Any) -> ModelCard:
        """Add the model in a folder of one's own, which is used where it is.

        `fields` are fields of `ModelCard`; they win over the folder's `card.toml`, which wins
        over what the files themselves say.

        Raises:
            ModelNotFound: the folder holds no model.
            ConfigurationError: something cannot be known, or contradicts itself.
        """
        card = self._own.register(Path(path), name=name, fields=fields)
        self._learn(card)
        return card

    def add_folder(self, path: Path | str, *, name: str | None = None) -> ModelCard:
        """As `register_folder`, for every registry of this root from now on, until `remove`.

        Raises as `register_folder`, and `ConfigurationError` where the name is another model's or
        the root cannot be written.
        """
        card = self._own.add(Path(path), name=name, known=self._catalogue)
        self._learn(card)
        return card

    def pull(self, name: str, *, body: Body | None = None, progress: Progress = silent) -> InstalledModel:
        """Bring a model's files to this machine, or repair them; at once when all is well.

        Raises:
            ModelNotFound: no source has it.
            ModelCorrupt: what can be had is not what it should be.
            ConfigurationError: the disk is full or may not be written.
            DeadlineExceeded: another process has worked on the same model for too long.
        """
        return self.store.ensure(self.get(name), body=body, progress=progress)

    def verify(self, name: str) -> VerifyReport:
        """Read every file of a model again and report on each; changes nothing."""
        return self.store.verify(self.get(name))

    def path(self, name: str) -> Path:
        """The folder the model's files are in, or would be fetched to."""
        return self.store.path(self.get(name))

    def remove(self, name: str) -> int:
        """Unload a model and delete its files; returns the bytes that were freed."""
        card = self.get(name)
        self.unload(card.name)
        self._own.forget(card.name)
        return self.store.remove(card)

    # -- in memory ------------------------------------------------------------------------------

    def load(self, name: str, *, progress: Progress = silent) -> T:
        """What the loader makes of a model, made once however many threads ask.

        Files that are missing are fetched first. A load that fails is forgotten, so that the
        next call tries again; everybody who waited for it gets its error.

        Raises:
            ConfigurationError: the registry was made without a loader.
            ServiceClosed: the registry was closed.
        """
        with self.held(name, progress=progress) as model:
            return model

    @contextmanager
    def held(self, name: str, *, progress: Progress = silent) -> Iterator[T]:
        """A model, loaded as by `load`, that stays in memory at least for this block.

        Where that makes too many, others leave after the block.
        """
        with self._hold(self.get(name), progress) as model:
            yield model
            # While it is in use, so that it is none of those that go.
            self.tidy()

    def lease(self, name: str) -> Lease[T] | None:
        """The use of a loaded model, which stays in memory until the lease is released; else None."""
        return self._residents.lease(self.get(name).name)

    def loaded(self, name: str) -> T | None:
        """What `load` would give without any work: the loaded model, or None."""
        resident = self._residents.find(self.get(name).name)
        return None if resident is None or resident.origin is None else resident.future.result()

    def replace(
        self, name: str, *, check: Callable[[T], None] | None = None, force: bool = False
    ) -> Retired[T] | None:
        """Load a model that is in memory anew, beside the present one, and put it in its place.

        For after its files or its card changed; None, and nothing happens, while they are what the
        model was made of (unless `force`), or when it is not loaded. Until the new one is there and
        `check` took no offence at it, the present one is given to whoever asks; then at once the new
        one. The caller closes the old one.

        Raises what loading and `check` raise; the present one stays then.
        """
        with self._replacing:
            card = self._own.reread(self.get(name))
            resident = self._residents.find(card.name)
            if resident is None:
                return None
            resident.future.result()  # it may be loading, by the old files
            self._learn(card)
            installed = self.store.ensure(card)
            present = resident.origin
            is_same = present and (present.card, present.fingerprint) == (card, installed.fingerprint)
            if is_same and not force:
                return None
            return self._replace(resident, installed, check)

    def unload(self, name: str, *, timeout: float | None = None) -> bool:
        """Forget a loaded model and `close()` it if it can be; False when it was not loaded.

        Waits, at most `timeout` seconds, until nobody has a lease of it. A load in progress is left
        alone.
        """
        retired = self.retire(name)
        if retired is not None:
            retired.close(timeout)
        return retired is not None

    def retire(self, name: str) -> Retired[T] | None:
        """Forget a loaded model at once, and leave it to the caller to close it; None if it is not loaded."""
        resident = self._residents.take_out(self.get(name).name)
        return None if resident is None else Retired(self._residents, resident)

    def tidy(self) -> None:
        """Close what there is no room for and nobody uses."""
        for resident in self._residents.take_out_crowd():
            Retired(self._residents, resident).close()

    def list_loaded(self) -> builtins.list[LoadedModel]:
        """The models in memory, by name."""
        return self._residents.told()

    def close(self, timeout: float | None = 0.0) -> None:
        """Unload everything and load nothing any more; who uses a model has `timeout` seconds."""
        for resident in self._residents.close():
            Retired(self._residents, resident).close(timeout)

    # -- inside ---------------------------------------------------------------------------------

    def _learn(self, card: ModelCard) -> Catalogue:
        with self._lock:
            self._catalogue = self._catalogue.added(card)
            return self._catalogue

    def _best(self, kind: Kind) -> ModelCard:
        cards = [card for card in self.list() if card.kind == kind]
        for card in cards:
            if self.store.is_available(card):
                return card
        best = self._catalogue.best(kind)
        raise ModelNotFound(
            f"No {kind} model is on this machine ({self.store.root}). "
            f"Fetch the best one with: resilient-ai models pull {best.name}"
        )

    def _hold(self, card: ModelCard, progress: Progress) -> Lease[T]:
        """A lease of the model, which is loaded by one of all who ask."""
        loader = self._loader
        if loader is None:
            raise ConfigurationError("This registry was made without a loader; pass `loader=`.")
        while True:
            resident, is_mine = self._residents.enter(card.name)
            if is_mine:
                return self._load(resident, card, loader, progress)
            resident.future.result()
            if lease := self._residents.lease(card.name):
                return lease

    def _load(
        self, resident: Resident[T], card: ModelCard, loader: Loader[T], progress: Progress
    ) -> Lease[T]:
        try:
            installed = self.store.ensure(card, progress=progress)
            for other in self._residents.take_out_crowd(coming=installed.nbytes):
                Retired(self._residents, other).close()
            model = loader(installed)
        except BaseException as exc:  # those who wait must hear of it, whatever it is
            self._residents.give_up(resident, exc)
            raise
        try:
            return self._residents.settle(resident, model, _origin(installed, model))
        except BaseException as exc:
            self._residents.give_up(resident, exc)
            close_model(model)
            raise

    def _replace(
        self, old: Resident[T], installed: InstalledModel, check: Callable[[T], None] | None
    ) -> Retired[T] | None:
        assert self._loader is not None, "nothing can be loaded without a loader"
        began = self._clock()
        model = self._loader(installed)
        try:
            if check is not None:
                check(model)
            replaced = self._residents.replace(old, model, _origin(installed, model), began=began)
        except BaseException:
            close_model(model)
            raise
        if replaced:
            return Retired(self._residents, old)
        close_model(model)
        return None

    def _tidy_soon(self) -> None:
        """Tidy on a thread of its own: whoever gave the last lease back has no time for it."""
        with self._lock:
            if self._tidying:
                return
            self._tidying = True
        try:
            threading.Thread(target=self._tidy_once, name="resilient-ai-tidy", daemon=True).start()
        except RuntimeError as exc:
            _log.warning("no thread to unload models on (%s); it is tried again", exc)
            with self._lock:
                self._tidying = False

    def _tidy_once(self) -> None:
        with self._lock:
            self._tidying = False
        self.tidy()


def _origin(installed: InstalledModel, model: object) -> Origin:
    nbytes = getattr(model, "nbytes", None)
    return Origin(
        installed.card,
        installed.fingerprint,
        installed.revision,
        nbytes if isinstance(nbytes, int) else installed.nbytes,
    )
