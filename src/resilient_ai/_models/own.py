"""Models in folders of one's own: those that lie in the root, those added to it, those registered.

::

    root/<name>/...            a folder with a tokenizer.json, which the catalogue does not know
    root/.added/<name>.toml    says where a folder elsewhere is
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from resilient_ai._models.cards import ModelCard
from resilient_ai._models.catalogue import Catalogue
from resilient_ai._models.landing import write_whole
from resilient_ai._models.tables import toml_value
from resilient_ai.errors import ConfigurationError, ResilientAIError

__all__ = ["OwnModels"]

_ADDED: Final = ".added"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder with a model, under the name that it has here."""

    path: Path
    name: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def card(self) -> ModelCard:
        # Here, because it brings what builds graphs, which a look at the catalogue never needs.
        from resilient_ai._models.folders import card_from_folder  # noqa: PLC0415

        return card_from_folder(self.path, name=self.name, **self.fields)


class OwnModels:
    """Makes cards of folders that belong to the user; safe for threads, and for other processes' changes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, _Folder] = {}  # of the cards that were given out, to read them again

    def register(self, path: Path, *, name: str | None, fields: Mapping[str, Any]) -> ModelCard:
        """The card of a folder; raises as `card_from_folder`."""
        return self._read(_Folder(path, name, fields))

    def add(self, path: Path, *, name: str | None, known: Catalogue) -> ModelCard:
        """The card of a folder, and a note of it for everybody who has this root.

        Raises as `card_from_folder`, and `ConfigurationError` where the name is taken or the note
        cannot be written.
        """
        folder = path.expanduser().resolve()
        card = _Folder(folder, name).card()
        note = self._note(card.name)
        taken = known.find(card.name) if card.name in known else None
        if taken is not None and not note.exists() and taken.name not in self._folders:
            raise ConfigurationError(
                f"{card.name!r} is a model of the catalogue. Give yours another name: "
                f"resilient-ai models add {path} --name <name>"
            )
        write_whole(note, f"folder = {toml_value(str(folder))}\n".encode())
        return self._read(_Folder(folder, card.name))

    def forget(self, name: str) -> None:
        """Undo `add`; the folder itself is left alone."""
        self._note(name).unlink(missing_ok=True)
        self._folders.pop(name, None)

    def find(self, name: str, *, known: Catalogue) -> ModelCard | None:
        """The card of that name or alias, None where no folder has it; raises as `card_from_folder`."""
        wanted = name.casefold()
        folders = list(self._found(known))
        for folder in folders:
            if (folder.name or folder.path.name).casefold() == wanted:
                return self._read(folder)
        cards = self._readable(folders)
        return next((card for card in cards if wanted in _names(card)), None)

    def cards(self, *, known: Catalogue) -> Iterator[ModelCard]:
        """The card of every folder that can be read; what is wrong with the others is logged."""
        return self._readable(self._found(known))

    def reread(self, card: ModelCard) -> ModelCard:
        """The card as its folder has it now; one that is of no folder as it is. Raises as `register`."""
        folder = self._folders.get(card.name)
        return card if folder is None else self._read(folder)

    def _readable(self, folders: Iterable[_Folder]) -> Iterator[ModelCard]:
        for folder in folders:
            try:
                yield self._read(folder)
            except ResilientAIError as exc:
                _log.warning("%s is left out: %s", folder.path, exc)

    def _read(self, folder: _Folder) -> ModelCard:
        card = folder.card()
        self._folders[card.name] = folder
        return card

    def _note(self, name: str) -> Path:
        return self._root / _ADDED / f"{name}.toml"

    def _found(self, known: Catalogue) -> Iterator[_Folder]:
        """The folders that the root has, or knows of; a name of the catalogue is the catalogue's."""
        for note in sorted((self._root / _ADDED).glob("*.toml")):
            if (folder := _read_note(note)) is not None and note.stem not in known:
                yield _Folder(folder, note.stem)
        for tokenizer in sorted(self._root.glob("*/tokenizer.json")):
            name = tokenizer.parent.name
            if not name.startswith(".") and name not in known:
                yield _Folder(tokenizer.parent, None)


def _names(card: ModelCard) -> set[str]:
    return {name.casefold() for name in (card.name, *card.aliases)}


def _read_note(path: Path) -> Path | None:
    try:
        return Path(tomllib.loads(path.read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        _log.warning('%s is left out: it does not say `folder = "..."` (%s)', path, exc)
        return None
