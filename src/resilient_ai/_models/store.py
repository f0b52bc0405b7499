"""The models on this machine: found, verified, fetched when missing, repaired when damaged.

::

    root/<name>/...                  the files, under the paths they have at their source
    root/.locks/<name>.lock          held while a model is fetched or removed
    root/.quarantine/<name>/...      the last damaged version of a file, for a look at it
    state/<name>/manifest.json       hashes and stamps: what was verified when
    state/<name>/derived/            what is built from the files

`state` is `root/.state` unless told otherwise; with a `state` elsewhere `root` may be read-only.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_ai._models.cards import Body, ModelCard
from resilient_ai._models.inspection import Inspection, inspect, is_present
from resilient_ai._models.installed import InstalledModel, VerifyReport
from resilient_ai._models.landing import writing
from resilient_ai._models.locks import exclusive
from resilient_ai._models.manifest import Manifest
from resilient_ai._models.places import Location, local_folder
from resilient_ai._models.progress import Progress, silent
from resilient_ai.errors import ConfigurationError, ModelCorrupt

if TYPE_CHECKING:
    from resilient_ai._models.download import Downloader

__all__ = ["ModelStore"]

_log = logging.getLogger(__name__)


class ModelStore:
    """Keeps models under one folder; safe for threads and for processes that share the folder.

    `root/<name>` is looked at first, then what else is on this machine (folders and packages
    the card names), then, unless `offline`, the network: `mirror` (a web server whose paths are
    those of a `root`) and the card's own sources. Offline, nothing is ever connected to; copies
    in the hub's own cache are still used. `lock_timeout` (seconds) bounds the wait for another
    process that works on the same model.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        mirror: str | None = None,
        offline: bool = False,
        state: Path | str | None = None,
        downloader: Downloader | None = None,
        lock_timeout: float = 3600.0,
    ) -> None:
        self.root = Path(root).expanduser()
        self._state = Path(state).expanduser() if state is not None else self.root / ".state"
        self._lock_timeout = lock_timeout
        self._mirror = mirror
        self._offline = offline
        self._downloader = downloader

    def __repr__(self) -> str:
        return f"<ModelStore {self.root}>"

    def ensure(
        self, card: ModelCard, *, body: Body | None = None, progress: Progress = silent
    ) -> InstalledModel:
        """The model, fetched or repaired if need be; of several callers one does the work.

        `body` asks for weights or graph; without it any body that is at hand will do, and the
        preferred one is fetched.

        Raises:
            ModelNotFound: no source has it; the message has each source's answer.
            ModelCorrupt: what can be had is not what it should be.
            ConfigurationError: the disk is full or may not be written, or the card lists no files.
            DeadlineExceeded: another process has held the model's lock for too long.
        """
        if found := self.installed(card, body=body):
            return found
        wanted = self._bodies(card, body)[0]
        with exclusive(self.root / ".locks", card.name, self._lock_timeout):
            if found := self.installed(card, body=body):  # the one that held the lock did it
                return found
            home = self._home(card)
            if not home.owned:  # its owner's to repair
                return self._settled(self._inspect(card, wanted, home))
            # Twice: a graph that has landed may turn out to need files that the card does not list.
            for _ in range(2):
                state = self._inspect(card, wanted, home)
                if state.ok:
                    break
                self._fetch(state, progress)
        return self._settled(self._inspect(card, wanted, home))

    def installed(self, card: ModelCard, *, body: Body | None = None) -> InstalledModel | None:
        """The model if it is on this machine, complete and verified; no network, no repair.

        The first look at a file reads it all, later ones compare its stamp.
        """
        for location, wanted in self._present(card, self._bodies(card, body)):
            state = self._inspect(card, wanted, location)
            if state.ok:
                return state.installed(self.cache_dir(card))
            _log.warning("%s", _damage(state))
        return None

    def is_available(self, card: ModelCard) -> bool:
        """Whether the model's files are on this machine with the right sizes; reads none of them."""
        return any(self._present(card, card.bodies))

    def verify(self, card: ModelCard) -> VerifyReport:
        """Read every file of the model again and report on each; changes nothing.

        Of several places the one that `installed` would use is looked at; where there is none,
        the report says what is missing from `root/<name>`.
        """
        candidates = [(place, body) for place in self._locations(card) for body in self._bodies(card, None)]
        touched = (
            (place, body)
            for place, body in candidates
            if any((place.folder / file.path).exists() for file in card.files if file.body == body)
        )
        location, body = next(touched, candidates[0])
        state = inspect(card, body, location, self._manifest(card, location), thorough=True)
        return VerifyReport(card.name, location.folder, state.reports)

    def path(self, card: ModelCard) -> Path:
        """The folder the model's files are in or, when they are nowhere, would be fetched to."""
        location, _ = next(self._present(card, card.bodies), (self._home(card), None))
        return location.folder

    def cache_dir(self, card: ModelCard) -> Path:
        """A folder of the model's own for what is derived from its files."""
        return self._state / card.name / "derived"

    def remove(self, card: ModelCard) -> int:
        """Delete what the store holds of a model, and return the bytes that were freed.

        Folders and packages that the card names are somebody else's and stay.

        Raises:
            ConfigurationError: the disk may not be written.
            DeadlineExceeded: another process is working on the model.
        """
        folders = [self._state / card.name, self.root / ".quarantine" / card.name]
        if self._home(card).owned:
            folders.append(self.root / card.name)
        with exclusive(self.root / ".locks", card.name, self._lock_timeout):
            return sum(_delete(folder) for folder in folders)

    def _bodies(self, card: ModelCard, body: Body | None) -> tuple[Body, ...]:
        bodies = card.bodies if body is None else tuple(each for each in card.bodies if each == body)
        if not bodies:
            what = f"no {body}" if body else "no files"
            raise ConfigurationError(f"The card of model {card.name!r} lists {what}, so it cannot be had.")
        return bodies

    def _home(self, card: ModelCard) -> Location:
        """The model's folder in the root; somebody else's, if the card names it as a source."""
        home = self.root / card.name
        named = (source.location for source in card.sources if source.kind == "folder")
        owned = home.resolve() not in {Path(location).expanduser().resolve() for location in named}
        return Location(home, owned=owned, source="local")

    def _locations(self, card: ModelCard) -> Iterator[Location]:
        home = self._home(card)
        yield home
        for source in card.sources:
            folder = local_folder(source)
            if folder is not None and (home.owned or folder.resolve() != home.folder.resolve()):
                yield Location(folder, owned=False, source=f"{source.kind}:{source.location}")

    def _present(self, card: ModelCard, bodies: tuple[Body, ...]) -> Iterator[tuple[Location, Body]]:
        """Where the files are, to go by their sizes; the store's own folder first, whatever it has."""
        for location in self._locations(card):
            manifest = self._manifest(card, location)
            for body in bodies:
                if is_present(card, body, location, manifest):
                    yield location, body

    def _manifest(self, card: ModelCard, location: Location) -> Manifest:
        # The store's own folder may be mounted elsewhere tomorrow; what is in it is the same.
        where = "." if location.owned else str(location.folder)
        name = "manifest.json" if location.owned else "manifest.elsewhere.json"
        return Manifest.load(self._state / card.name / name, where)

    def _inspect(self, card: ModelCard, body: Body, location: Location) -> Inspection:
        manifest = self._manifest(card, location)
        state = inspect(card, body, location, manifest)
        fresh = {path: record for path, record in state.records.items() if manifest.files.get(path) != record}
        if fresh:
            manifest.record(fresh)
        return state

    def _fetch(self, state: Inspection, progress: Progress) -> None:
        # Here, because they bring the HTTP client, which a start with all files at hand never needs.
        from resilient_ai._models.download import Downloader  # noqa: PLC0415
        from resilient_ai._models.fetch import Fetcher  # noqa: PLC0415

        fetcher = Fetcher(
            self._downloader or Downloader(),
            mirror=self._mirror,
            offline=self._offline,
            quarantine=self.root / ".quarantine",
        )
        fetcher.fetch(state, self._manifest(state.card, state.location), progress)

    def _settled(self, state: Inspection) -> InstalledModel:
        if state.ok:
            return state.installed(self.cache_dir(state.card))
        raise ModelCorrupt(_damage(state) if state.reports else f"{state.card.name!r} has no files.")


def _damage(state: Inspection) -> str:
    wrong = "; ".join(str(report) for report in state.reports if report.verdict != "ok")
    return f"Model {state.card.name!r} is damaged: {wrong}"


def _delete(folder: Path) -> int:
    with writing(folder):
        if folder.is_symlink():  # a link that somebody made: what it leads to is theirs
            folder.unlink()
            return 0
        if not folder.exists():
            return 0
        size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
        shutil.rmtree(folder)
        return size
