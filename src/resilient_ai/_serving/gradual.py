"""A tokenizer that encodes the first texts before it has been read as a whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from resilient_ai._inference.excerpts import Excerpts, index_tokenizer
from resilient_ai._inference.prompts import SharedTokens
from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.landing import make_folder, write_whole
from resilient_ai._serving.threads import start_thread
from resilient_ai._telemetry.log import log
from resilient_ai.errors import ConfigurationError, Overloaded, ResilientAIError
from resilient_ai.values import Tokens

__all__ = ["GradualEncoder", "keep_index", "read_index"]

_MOST_CHARACTERS: Final = 400
"""Of the texts of one call, beyond which reading the whole tokenizer pays."""

_LEAST_TOKENS: Final = 32
"""A limit so high that no text of so many characters is cut before it is tokenised."""

_LARGE: Final = 4 * 2**20
"""Bytes of a tokenizer.json that takes a tenth of a second to read."""

_PAUSE: Final = 1.0
"""Seconds after the first texts in which the caller has its answer; reading keeps Python's lock."""

_LONGEST_END: Final = 1.0
"""Seconds that closing waits for a reading under way."""


class GradualEncoder:
    """Encodes the first few short texts with excerpts of a tokenizer, which it reads soon after. Thread-safe.

    The ids are those of the whole. It is read on a thread of its own a moment after the first texts, or
    at once for what no excerpt will do for. `make` makes an encoder of a tokenizer, `load` of the whole.
    `pause`, in seconds, is that moment. Close it, or the thread may outlast its model by so long.
    """

    def __init__(
        self,
        excerpts: Excerpts,
        make: Callable[[Tokenizer], TextEncoder],
        load: Callable[[], TextEncoder],
        *,
        pause: float = _PAUSE,
    ) -> None:
        self._excerpts = excerpts
        self._make = make
        self._load = load
        self._pause = pause
        self._loading = threading.Lock()  # held over the one reading
        self._whole: TextEncoder | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None  # guarded by `_lock`
        self._closed = threading.Event()
        self.control_tokens: Mapping[str, int] = make(excerpts.cut(_LETTERS).tokenizer).control_tokens

    def encode(self, texts: Sequence[str]) -> Tokens:
        """As `TextEncoder.encode`."""
        small = None if self._whole is not None else self._small(texts)
        return (small or self.whole()).encode(texts)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> Tokens:
        """As `TextEncoder.encode_pairs`."""
        return self.whole().encode_pairs(pairs)

    def encode_shared(self, query: str, documents: Sequence[str]) -> SharedTokens | None:
        """As `TextEncoder.encode_shared`."""
        return self.whole().encode_shared(query, documents)

    def whole(self) -> TextEncoder:
        """The encoder with the whole tokenizer, read by one of all who ask; raises as `load`."""
        with self._loading:
            if self._whole is None:
                self._whole = self._load()
            return self._whole

    def close(self) -> None:
        """Read nothing in the background any more; what is being read is read to its end."""
        self._closed.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(_LONGEST_END)

    def _read_soon(self) -> None:
        with self._lock:
            if self._thread is not None or self._closed.is_set():
                return
            try:
                self._thread = start_thread(self._read_later, "resilient-ai-read")
            except Overloaded as exc:
                log.info("the tokenizer is read when it is next needed", error=str(exc))

    def _read_later(self) -> None:
        if self._closed.wait(self._pause):
            return
        try:
            self.whole()
        except ResilientAIError as exc:  # whoever needs it next hears of it
            log.warning("the tokenizer could not be read", error=str(exc))

    def _small(self, texts: Sequence[str]) -> TextEncoder | None:
        """An encoder that is proved to do for these texts; None where there is none."""
        if sum(map(len, texts)) > _MOST_CHARACTERS or not all(map(_is_unicode, texts)):
            return None
        excerpt = self._excerpts.cut((*texts, *_LETTERS))
        encoder = self._make(excerpt.tokenizer)
        if encoder.max_tokens < _LEAST_TOKENS or not all(
            excerpt.covers(encoder.words(text)) for text in texts
        ):
            return None
        self._read_soon()
        return encoder


def read_index(tokenizer: Path, place: Path) -> Excerpts | None:
    """The index of a tokenizer that was kept in `place`; None where there is none that can be used."""
    if tokenizer.stat().st_size < _LARGE:
        return None
    try:
        content = place.read_bytes()
        return Excerpts(content) if content else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        log.info("the index of a tokenizer is made anew", error=str(exc))
        return None


def keep_index(tokenizer: Path, place: Path) -> None:
    """Make the index of a large tokenizer and keep it; an empty file for one that cannot be cut."""
    try:
        is_known = place.is_file() and place.stat().st_size == 0
        if tokenizer.stat().st_size < _LARGE or is_known:
            return
        make_folder(place.parent)
        if os.access(place.parent, os.W_OK):  # or a second would be spent at every start, for nothing
            write_whole(place, index_tokenizer(tokenizer.read_bytes()) or b"")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigurationError) as exc:
        log.info("there is no index of a tokenizer; it is read as a whole at every start", error=str(exc))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


_LETTERS: Final = ("a", "\U00012000")
"""What an encoder tries a tokenizer with."""
