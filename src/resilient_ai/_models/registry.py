"""The public face of the models: what there is, what is at hand, what is loaded."""

from __future__ import annotations

import builtins
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from resilient_ai._models.cards import Body, Kind, ModelCard
from resilient_ai._models.catalogue import Catalogue, builtin_catalogue
from resilient_ai._models.folders import card_from_folder
from resilient_ai._models.installed import InstalledModel, VerifyReport
from resilient_ai._models.progress import Progress, silent
from resilient_ai._models.store import ModelStore
from resilient_ai.errors import ConfigurationError, ModelNotFound

__all__ = ["LoadedModel", "ModelRegistry"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory: since when (by the registry's clock) and how long loading took, in seconds."""

    name: str
    loaded_at: float
    load_seconds: float


@dataclass(slots=True, eq=False)
class _Entry(Generic[T]):
    """One load, running or done (`loaded` is set); who put it there runs it, all others wait."""

    future: Future[T]
    began: float
    loaded: LoadedModel | None = None


class ModelRegistry(Generic[T]):
    """Knows models by name, brings their files and keeps what a loader makes of them.

    Safe for threads; no lock is held while files are fetched or a loader runs. `loader` turns
    an `InstalledModel` into whatever the caller works with (T); without one, `load` refuses.
    Names are looked up with their aliases and without regard to case, and an unknown one is
    `ModelNotFound` everywhere.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        mirror: str | None = None,
        offline: bool = False,
        state: Path | str | None = None,
        loader: Callable[[InstalledModel], T] | None = None,
        catalogue: Catalogue | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = ModelStore(root, mirror=mirror, offline=offline, state=state)
        self._loader = loader
        self._clock = clock
        self._lock = threading.Lock()  # guards _catalogue and _entries, never held over work
        self._catalogue = catalogue or builtin_catalogue()
        self._entries: dict[str, _Entry[T]] = {}

    def __repr__(self) -> str:
        loaded = ", ".join(model.name for model in self.list_loaded()) or "nothing"
        return f"<ModelRegistry {self.store.root} {len(self._catalogue)} models, loaded: {loaded}>"

    def list(self) -> builtins.list[ModelCard]:
        """All cards, best rank first."""
        return [*self._catalogue]

    def get(self, name: str) -> ModelCard:
        """The card of a name or alias.

        Raises:
            ModelNotFound: nobody has the name; the message has the nearest ones.
        """
        return self._catalogue.find(name)

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

        Raises:
            ConfigurationError: an alias belongs to another model, or the model being replaced
                is loaded (unload it first).
        """
        with self._lock:
            if card.name in self._entries and card != self._catalogue.find(card.name):
                raise ConfigurationError(
                    f"Model {card.name!r} is loaded; unload it before changing its card."
                )
            self._catalogue = self._catalogue.added(card)

    def register_folder(self, path: Path | str, *, name: str | None = None, **fields: Any) -> ModelCard:
        """Add the model in a folder of one's own, which is used where it is.

        `fields` are fields of `ModelCard`; they win over the folder's `card.toml`, which wins
        over what the files themselves say.

        Raises:
            ModelNotFound: the folder holds no model.
            ConfigurationError: something cannot be known, or contradicts itself.
        """
        card = card_from_folder(Path(path), name=name, **fields)
        self.register(card)
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
        return self.store.remove(card)

    def load(self, name: str, *, progress: Progress = silent) -> T:
        """What the loader makes of a model, made once however many threads ask.

        Files that are missing are fetched first. A load that fails is forgotten, so that the
        next call tries again; everybody who waited for it gets its error.

        Raises:
            ConfigurationError: the registry was made without a loader.
        """
        if self._loader is None:
            raise ConfigurationError("This registry was made without a loader; pass `loader=`.")
        card = self.get(name)
        with self._lock:
            entry = self._entries.get(card.name)
            mine = entry is None
            if entry is None:
                entry = _Entry(Future[T](), self._clock())
                self._entries[card.name] = entry
        if mine:
            self._run(card, entry, self._loader, progress)
        return entry.future.result()

    def loaded(self, name: str) -> T | None:
        """What `load` would give without any work: the loaded model, or None."""
        card = self.get(name)
        with self._lock:
            entry = self._entries.get(card.name)
        return entry.future.result() if entry is not None and entry.loaded is not None else None

    def unload(self, name: str) -> bool:
        """Forget a loaded model and `close()` it if it can be; False when it was not loaded.

        A load in progress is left alone. Who still holds the model must not use it any more.
        """
        card = self.get(name)
        with self._lock:
            entry = self._entries.get(card.name)
            if entry is None or entry.loaded is None:
                return False
            del self._entries[card.name]
        close = getattr(entry.future.result(), "close", None)
        if callable(close):
            close()
        return True

    def list_loaded(self) -> builtins.list[LoadedModel]:
        """The models in memory, by name."""
        with self._lock:
            loaded = [entry.loaded for entry in self._entries.values() if entry.loaded is not None]
        return sorted(loaded, key=lambda model: model.name)

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

    def _run(
        self, card: ModelCard, entry: _Entry[T], loader: Callable[[InstalledModel], T], progress: Progress
    ) -> None:
        try:
            model = loader(self.store.ensure(card, progress=progress))
        except BaseException as exc:  # noqa: BLE001  # those who wait must hear of it, whatever it is
            with self._lock:
                self._entries.pop(card.name, None)
            entry.future.set_exception(exc)
            return
        now = self._clock()
        # The result first: whoever sees `loaded` must not have to wait for it.
        entry.future.set_result(model)
        with self._lock:
            entry.loaded = LoadedModel(card.name, now, now - entry.began)
