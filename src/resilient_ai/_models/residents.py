"""The models in memory: who loads one, who uses it, and when it may be closed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

from resilient_ai._models.keeping import KeepRules, LoadedModel, Origin
from resilient_ai.errors import ServiceClosed

__all__ = ["Lease", "Resident", "Residents", "Retired", "close_model"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Resident(Generic[T]):
    """One model, being loaded or in memory; guarded by its `Residents`.

    Who put it there loads it, all others wait for `future`.
    """

    name: str
    began: float
    future: Future[T] = field(default_factory=Future)
    origin: Origin | None = None  # None until it is loaded
    loaded_at: float = 0.0
    last_used: float = 0.0
    users: int = 0
    is_closing: bool = False

    def told(self) -> LoadedModel:
        assert self.origin is not None
        seconds = self.loaded_at - self.began
        return LoadedModel(self.name, self.loaded_at, seconds, self.last_used, self.users, self.origin)


class Lease(Generic[T]):
    """The right to use a loaded model, which stays in memory until `release`; a context manager, too.

    `release` may be called twice and by any thread; the model must not be used after it.
    """

    __slots__ = ("_release", "resident")

    def __init__(self, resident: Resident[T], release: Callable[[Lease[T]], None]) -> None:
        self.resident: Resident[T] | None = resident  # until it is given back; guarded by its `Residents`
        self._release = release

    @property
    def model(self) -> T:
        resident = self.resident
        assert resident is not None, "this lease was given back"
        return resident.future.result()

    def release(self) -> None:
        self._release(self)

    def __enter__(self) -> T:
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Residents(Generic[T]):
    """The table of the models in memory, by name. Thread-safe; nothing is loaded or closed in here.

    A model that was taken out is given to nobody any more. Who uses it may finish; then it is idle,
    and whoever took it out closes it. `on_crowd` is called, on the thread of whoever gives a lease back,
    when a model could leave that the rules have no room for.
    """

    def __init__(self, rules: KeepRules, *, on_crowd: Callable[[], None], clock: Callable[[], float]) -> None:
        self._rules = rules
        self._on_crowd = on_crowd
        self._clock = clock
        self._changed = threading.Condition()
        # Guarded by `_changed`, with all fields of the residents.
        self._table: dict[str, Resident[T]] = {}
        self._taken_out: set[Resident[T]] = set()
        self._closed = False

    def enter(self, name: str) -> tuple[Resident[T], bool]:
        """The model of that name, and whether it is the caller who has to load it."""
        with self._changed:
            self._check_open()
            resident = self._table.get(name)
            is_new = resident is None
            if resident is None:
                resident = self._table[name] = Resident(name, self._clock())
            return resident, is_new

    def settle(self, resident: Resident[T], model: T, origin: Origin) -> Lease[T]:
        """Note that a model was loaded, and lease it.

        Raises:
            ServiceClosed: the table was closed meanwhile, and the model is the caller's to close.
        """
        with self._changed:
            self._check_open()
            self._note_loaded(resident, model, origin)
            return self._leased(resident)

    def give_up(self, resident: Resident[T], error: BaseException) -> None:
        """Forget a model that could not be loaded, and tell who waits for it."""
        with self._changed:
            if self._table.get(resident.name) is resident:
                del self._table[resident.name]
        resident.future.set_exception(error)

    def lease(self, name: str) -> Lease[T] | None:
        """The model of that name if it is loaded."""
        with self._changed:
            resident = self._table.get(name)
            return None if resident is None or resident.origin is None else self._leased(resident)

    def find(self, name: str) -> Resident[T] | None:
        """The model of that name, loaded or being loaded."""
        with self._changed:
            return self._table.get(name)

    def replace(self, old: Resident[T], model: T, origin: Origin, *, began: float) -> bool:
        """Put another model in the place of one that is in memory, which is taken out.

        False, and nothing changes, when the old one has left meanwhile. Raises as `settle` does.
        """
        with self._changed:
            self._check_open()
            if self._table.get(old.name) is not old:
                return False
            fresh: Resident[T] = Resident(old.name, began)
            self._note_loaded(fresh, model, origin)
            self._take_out(old)
            self._table[old.name] = fresh
            return True

    def take_out(self, name: str) -> Resident[T] | None:
        """Take out a loaded model; one that is being loaded stays."""
        with self._changed:
            resident = self._table.get(name)
            if resident is None or resident.origin is None:
                return None
            self._take_out(resident)
            return resident

    def take_out_crowd(self, *, coming: int = 0) -> list[Resident[T]]:
        """Take out what the rules have no room for and nobody uses."""
        with self._changed:
            crowd = self._rules.leaving(self._told(), coming=coming)
            residents = [self._table[model.name] for model in crowd]
            for resident in residents:
                self._take_out(resident)
            return residents

    def wait_idle(self, resident: Resident[T], timeout: float | None) -> bool:
        """Wait until nobody uses a model; False when time is up before."""
        with self._changed:
            return self._changed.wait_for(lambda: resident.users == 0, timeout)

    def begin_closing(self, resident: Resident[T]) -> bool:
        """Whether the caller is the one to close a model that was taken out."""
        with self._changed:
            is_first, resident.is_closing = not resident.is_closing, True
            self._taken_out.discard(resident)
            return is_first

    def told(self) -> list[LoadedModel]:
        """The loaded models, by name."""
        with self._changed:
            return sorted(self._told(), key=lambda model: model.name)

    def close(self) -> list[Resident[T]]:
        """Take no more models, and take out all that are there; returns everything left to close."""
        with self._changed:
            self._closed = True
            for resident in list(self._table.values()):
                if resident.origin is not None:
                    self._take_out(resident)
            return list(self._taken_out)

    def _release(self, lease: Lease[T]) -> None:
        with self._changed:
            resident, lease.resident = lease.resident, None
            if resident is None:
                return
            resident.users -= 1
            resident.last_used = self._clock()
            if resident.users:
                return
            self._changed.notify_all()
            is_crowded = self._rules.has_limits and bool(self._rules.leaving(self._told()))
        if is_crowded:
            self._on_crowd()

    # -- with the lock held ---------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ServiceClosed("this registry was closed; make a new one")

    def _note_loaded(self, resident: Resident[T], model: T, origin: Origin) -> None:
        resident.loaded_at = resident.last_used = self._clock()
        resident.origin = origin
        # Nobody calls back from it, so this is quick; whoever sees an origin need not wait for the model.
        resident.future.set_result(model)

    def _leased(self, resident: Resident[T]) -> Lease[T]:
        resident.users += 1
        resident.last_used = self._clock()
        return Lease(resident, self._release)

    def _take_out(self, resident: Resident[T]) -> None:
        del self._table[resident.name]
        self._taken_out.add(resident)

    def _told(self) -> list[LoadedModel]:
        return [resident.told() for resident in self._table.values() if resident.origin is not None]


class Retired(Generic[T]):
    """A model that nobody gets any more, while calls that have it may still finish."""

    def __init__(self, residents: Residents[T], resident: Resident[T]) -> None:
        self._residents = residents
        self._resident = resident

    def close(self, timeout: float | None = None) -> None:
        """Wait until nobody uses it, at most so many seconds, and `close()` it if it can be.

        Who still uses it then must not any more.
        """
        self._residents.wait_idle(self._resident, timeout)
        if self._residents.begin_closing(self._resident):
            close_model(self._resident.future.result())


def close_model(model: object) -> None:
    """Call its `close`, if it has one; it is not needed any more, so an error is logged and no more."""
    close = getattr(model, "close", None)
    if not callable(close):
        return
    try:
        close()
    except Exception:  # noqa: BLE001 - as above, whatever it is
        _log.exception("%r could not be closed", model)
