"""Fetching one file over HTTP: resumed where it stopped, retried while it makes headway.

::

    .model.safetensors.part        the bytes so far
    .model.safetensors.part.json   of which content they are part, and the server's validator

A part is resumed only when the content asked for is the same and the server confirms it by
`If-Range`; a server that refuses, ignores or changes its mind about ranges makes the download
begin again. Nothing here decides whether the bytes are the right ones: see `store`.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import tenacity

from resilient_ai._models.landing import require_space, write_whole, writing
from resilient_ai.errors import ModelNotFound

__all__ = ["Downloader", "Remote", "SourceFailed", "Transient", "discard", "sidecar_of"]

_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_RETRY_AFTER: Final = 60.0  # seconds; a server may ask for hours, and nobody would know why
_CONTENT_RANGE: Final = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


class SourceFailed(ModelNotFound):
    """Raised when one source cannot give a file; another one still may."""


class Transient(Exception):
    """Raised inside a retry loop: trouble that may pass, `retry_after` seconds at the least."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Remote:
    """Where one file is to be had, and what is known of it beforehand.

    `sha256` or `git_sha1` is what the source says the content is; `headers` may hold a token,
    which is why they are not part of the repr.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    revision: str | None = None

    @property
    def identity(self) -> str:
        """Equal for requests whose bytes may be joined."""
        return self.sha256 or self.git_sha1 or self.url


def sidecar_of(partial: Path) -> Path:
    """Where it is written down what a partial file is a part of."""
    return partial.with_name(f"{partial.name}.json")


def discard(partial: Path) -> None:
    """Forget a partial file."""
    with writing(partial):
        sidecar_of(partial).unlink(missing_ok=True)
        partial.unlink(missing_ok=True)


class Downloader:
    """Downloads files; holds no connection between calls and may be shared by threads.

    A download ends in one of three ways: the whole file, `SourceFailed`, or a refusal of the
    disk. It gives up after `attempts` tries in a row that brought nothing new; `stall_timeout`
    is the longest silence, in seconds, that is taken for patience.
    """

    def __init__(
        self,
        *,
        attempts: int = 5,
        stall_timeout: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
        seed: int | None = None,
    ) -> None:
        self._attempts = attempts
        self._timeout = httpx.Timeout(stall_timeout, connect=min(stall_timeout, 10.0))
        self._sleep = sleep
        self._random = random.Random(seed)  # noqa: S311  # spreads retries; nothing secret

    def download(self, remote: Remote, partial: Path, report: Callable[[int, int | None], None]) -> None:
        """Leave the whole of `remote` in `partial`, going on from what is there.

        Raises:
            SourceFailed: the server has no such file, refuses it, or cannot be reached.
            ConfigurationError: the disk is full or may not be written.
        """
        with httpx.Client(follow_redirects=True, timeout=self._timeout) as client:
            transfer = _Transfer(client, remote, partial, report)
            self.retry(transfer.attempt, headway=lambda: transfer.furthest)

    def retry(self, step: Callable[[], Any], headway: Callable[[], int] = lambda: 0) -> Any:
        """Run `step` until it raises no `Transient`; the result is that of the last run.

        Raises:
            SourceFailed: too many tries in a row left `headway()` where it was.
        """
        fruitless = _Fruitless(self._attempts, headway, self._random)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Transient),
            stop=fruitless,
            wait=fruitless.pause,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(step)
        except Transient as exc:
            raise SourceFailed(f"{exc} (after {fruitless.limit} tries that brought nothing)") from exc


class _Fruitless:
    """Counts tries in a row without headway, so that a long file may be cut off often."""

    def __init__(self, limit: int, headway: Callable[[], int], spread: random.Random) -> None:
        self.limit = limit
        self._headway = headway
        self._spread = spread
        self._best = headway()
        self._count = 0

    def __call__(self, _: tenacity.RetryCallState) -> bool:
        """Whether to give up."""
        now = self._headway()
        self._count = 1 if now > self._best else self._count + 1
        self._best = max(self._best, now)
        return self._count >= self.limit

    def pause(self, state: tenacity.RetryCallState) -> float:
        """Half a second, doubled each time up to 30 s, of which a random half is taken off."""
        pause = min(30.0, 0.5 * 2.0**self._count) * (0.5 + self._spread.random() / 2)
        error = state.outcome.exception() if state.outcome else None
        return max(pause, error.retry_after) if isinstance(error, Transient) else pause


class _Transfer:
    """One file on its way; `furthest` is the most bytes that were ever on disk."""

    def __init__(
        self, client: httpx.Client, remote: Remote, partial: Path, report: Callable[[int, int | None], None]
    ) -> None:
        self._client = client
        self._remote = remote
        self._partial = partial
        self._report = report
        self.furthest = 0

    def attempt(self) -> None:
        """Ask for what is missing and write what comes.

        Raises:
            Transient: it may work next time; what came is kept.
            SourceFailed: it will not.
        """
        offset, validator = self._resumable()
        headers = {**self._remote.headers, "Accept-Encoding": "identity"}
        if offset and validator:
            headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
        with (
            _translated(self._remote.url),
            self._client.stream("GET", self._remote.url, headers=headers) as response,
        ):
            _check_status(response, asked_range=offset > 0)
            self._receive(response, offset, validator)

    def _resumable(self) -> tuple[int, str | None]:
        """How much of the part can be kept, and the validator to ask with."""
        try:
            known = json.loads(sidecar_of(self._partial).read_bytes())
            identity, validator = known["identity"], known["validator"]
            offset = self._partial.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return 0, None
        if identity != self._remote.identity or not isinstance(validator, str):
            return 0, None
        return offset, validator

    def _receive(self, response: httpx.Response, offset: int, validator: str | None) -> None:
        start, total = _range_of(response)
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and total == offset:
            return  # the part is the whole
        # Some servers honour Range and overlook If-Range: the new validator gives them away.
        mixed = start > 0 and validator != (_validator(response) or validator)
        if start not in {0, offset} or mixed:
            discard(self._partial)
            raise Transient(f"{self._remote.url} answered with a part of something else")
        if start == 0:
            self._begin(response)
        require_space(self._partial.parent, (total or self._remote.size or 0) - start)
        self._append(response, start, total)

    def _begin(self, response: httpx.Response) -> None:
        # A new file, never a truncated one: the old one may share its blocks with the hub's cache.
        discard(self._partial)
        known = {"identity": self._remote.identity, "validator": _validator(response)}
        write_whole(sidecar_of(self._partial), json.dumps(known).encode())

    def _append(self, response: httpx.Response, done: int, total: int | None) -> None:
        self._report(done, total or self._remote.size)
        with writing(self._partial), self._partial.open("ab") as file:
            # As they come: chunks of a given size would hold back, and on a cut lose, the last bytes.
            for chunk in response.iter_bytes():
                file.write(chunk)
                done += len(chunk)
                self.furthest = max(self.furthest, done)
                self._report(done, total or self._remote.size)
        if total is not None and done < total:
            raise Transient(f"{self._remote.url} was cut off at {done} of {total} bytes")


def _check_status(response: httpx.Response, *, asked_range: bool) -> None:
    status, url = response.status_code, response.url
    if status in _AGAIN:
        raise Transient(f"{url} answered {status}", _retry_after(response))
    if status in {401, 403}:
        raise SourceFailed(f"{url} answered {status}: no access. A gated model needs HF_TOKEN to be set.")
    if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and asked_range:
        return
    if status >= httpx.codes.BAD_REQUEST:
        raise SourceFailed(f"{url} answered {status}")


def _range_of(response: httpx.Response) -> tuple[int, int | None]:
    """Where the body begins in the file, and the file's length; None where it is not told."""
    if response.status_code == httpx.codes.OK:
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        length = response.headers.get("Content-Length")
        return 0, int(length) if length and not encoded else None
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        return -1, None
    first, total = match.groups()
    return int(first or -1), None if total == "*" else int(total)


def _validator(response: httpx.Response) -> str | None:
    """What `If-Range` may be asked with: a strong ETag, or else the date of the last change."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None  # ranges would count encoded bytes
    etag = response.headers.get("ETag")
    if etag:
        return None if etag.startswith("W/") else str(etag)
    changed = response.headers.get("Last-Modified")
    return str(changed) if changed else None


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return min(float(value), _LONGEST_RETRY_AFTER) if value.isdecimal() else 0.0


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Map httpx's errors: what the network did may pass, what the address is will not."""
    try:
        yield
    except httpx.TimeoutException as exc:
        raise Transient(f"{url} fell silent: {type(exc).__name__}") from exc
    except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError) as exc:
        raise Transient(f"{url} could not be read: {exc}") from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise SourceFailed(f"{url} cannot be fetched: {exc}") from exc
