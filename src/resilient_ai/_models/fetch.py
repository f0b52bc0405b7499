"""Bringing missing files home: one source after the other, each file verified before it lands."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from functools import partial as bind
from pathlib import Path

from resilient_ai._models.cards import ModelCard, ModelFile, ModelSource
from resilient_ai._models.download import Downloader, Remote, SourceFailed, discard
from resilient_ai._models.inspection import Inspection
from resilient_ai._models.landing import land, make_folder, partial_of, require_space, writing
from resilient_ai._models.manifest import FileRecord, Manifest
from resilient_ai._models.progress import Progress
from resilient_ai._models.sources import RemoteSource, remote_source
from resilient_ai._models.verify import external_data, git_blob_sha1, sha256_of, stamp_of
from resilient_ai.errors import ModelCorrupt, ModelNotFound

__all__ = ["Fetcher"]

_log = logging.getLogger(__name__)


class _WrongContent(Exception):
    """Raised when a source gave, twice, something else than it should have."""


class Fetcher:
    """Fetches the files that an inspection found missing or damaged; call it under the lock."""

    def __init__(
        self, downloader: Downloader, *, mirror: str | None, offline: bool, quarantine: Path
    ) -> None:
        self._downloader = downloader
        self._mirror = mirror
        self._offline = offline
        self._quarantine = quarantine

    def fetch(self, state: Inspection, manifest: Manifest, progress: Progress) -> None:
        """Bring every wanted file to the location that was inspected, and record each.

        Damaged files go to quarantine first. What one source cannot give, the next one is asked
        for; what has landed stays, also when the rest cannot be had.

        Raises:
            ModelNotFound: no source has a file, or the store is offline.
            ModelCorrupt: a source has it, but not with the bytes it should have.
        """
        altered = [report for report in state.reports if report.verdict == "altered"]
        reasons = [str(report) for report in altered]
        corrupt = bool(altered)
        for report in altered:
            _log.warning("%s; it is put aside and fetched again.", report)
            self._set_aside(report.path, state.card.name, report.file.path)
        wanted = _wanted(state)
        home = make_folder(state.location.folder)
        require_space(home, sum(_remaining(file, home) for file in wanted))
        for source in self._sources(state.card):
            try:
                self._fetch_from(source, wanted, home, manifest, progress)
            except SourceFailed as exc:
                reasons.append(f"{source.origin(wanted[0])}: {exc}")
            except _WrongContent as exc:
                corrupt = True
                reasons.append(f"{source.origin(wanted[0])}: {exc}")
        if any(not file.optional for file in wanted):
            raise self._failure(state.card, wanted[0], reasons, corrupt=corrupt)

    def _fetch_from(
        self,
        source: RemoteSource,
        wanted: list[ModelFile],
        home: Path,
        manifest: Manifest,
        progress: Progress,
    ) -> None:
        """Fetch what one source has, shortening `wanted` from the front as files land."""
        while wanted:
            try:
                record = self._obtain(source, wanted[0], home, manifest, progress)
            except SourceFailed:
                if not wanted[0].optional:
                    raise
                _log.info("%s has no %s, which is optional.", source.origin(wanted[0]), wanted[0].path)
            else:
                manifest = manifest.record({wanted[0].path: record})
            wanted.pop(0)

    def _sources(self, card: ModelCard) -> Iterator[RemoteSource]:
        mirror = [ModelSource("http", f"{self._mirror.rstrip('/')}/{card.name}")] if self._mirror else []
        for source in [*mirror, *card.sources]:
            remote = remote_source(source, self._downloader)
            if remote is not None:
                yield remote

    def _obtain(
        self, source: RemoteSource, file: ModelFile, home: Path, manifest: Manifest, progress: Progress
    ) -> FileRecord:
        """Land one file; what arrives damaged is fetched once more from the beginning."""
        known = _known(manifest, file, source.origin(file))
        final = home / file.path
        growing = partial_of(final)
        make_folder(final.parent)
        mismatch = ""
        for use_cache in (True, False):
            remote = self._transfer(source, file, known, growing, progress, use_cache=use_cache)
            found, mismatch = _compare(growing, file, remote, known)
            if not mismatch:
                land(growing, final)
                discard(growing)
                external = external_data(final) if file.role == "graph" else ()
                return FileRecord(found, *stamp_of(final), source.origin(file), remote.revision, external)
            _log.warning("%s from %s: %s; this copy is refused.", final, source.origin(file), mismatch)
            self._set_aside(growing, home.name, file.path)
            discard(growing)
        raise _WrongContent(f"{file.path}: {mismatch}")

    def _transfer(
        self,
        source: RemoteSource,
        file: ModelFile,
        known: FileRecord | None,
        growing: Path,
        progress: Progress,
        *,
        use_cache: bool,
    ) -> Remote:
        """Fill `growing` from the source, or from a copy its own tools left on this machine."""
        revision = known.revision if known else None
        failure: SourceFailed | None = None
        remote = Remote(source.origin(file), revision=revision)
        try:
            remote = self._resolve(source, file, revision)
        except SourceFailed as exc:
            failure = exc
        copy = source.cached(file, remote.revision) if use_cache else None
        if copy is not None:
            _copy(copy, growing)
        elif failure is not None:
            raise failure
        else:
            self._downloader.download(remote, growing, bind(progress, file.path))
        return remote

    def _resolve(self, source: RemoteSource, file: ModelFile, revision: str | None) -> Remote:
        if self._offline:
            raise SourceFailed("not asked, because the network is switched off (offline)")
        return source.resolve(file, revision)

    def _set_aside(self, path: Path, name: str, file: str) -> None:
        """Move a damaged file out of the way; the one that was there before is given up."""
        target = self._quarantine / name / file.replace("/", "__")
        make_folder(target.parent)
        with writing(target):
            path.replace(target)

    def _failure(
        self, card: ModelCard, file: ModelFile, reasons: list[str], *, corrupt: bool
    ) -> ModelCorrupt | ModelNotFound:
        why = "; ".join(reasons) or "it has no source to download from"
        if corrupt:
            return ModelCorrupt(
                f"Model {card.name!r}: no good copy of {file.path} can be had ({why}). What was found is in "
                f"{self._quarantine / card.name}. If the new content is the right one, correct the card's "
                f"sha256, or forget the old one with: resilient-ai models remove {card.name}"
            )
        return ModelNotFound(
            f"Model {card.name!r}: {file.path} cannot be had ({why}). Pull it where there is a network "
            f"(resilient-ai models pull {card.name}) and copy its folder here, or name a mirror."
        )


def _wanted(state: Inspection) -> list[ModelFile]:
    """The files to fetch, those that may fail last."""
    reported = state.wanted()
    optional = [file for file in state.card.files_for(state.body) if file.optional]
    absent = [file for file in optional if not (state.location.folder / file.path).exists()]
    return [*reported, *(file for file in absent if file not in reported)]


def _remaining(file: ModelFile, home: Path) -> int:
    """The bytes still to come, as far as the card tells and an earlier pull got."""
    growing = partial_of(home / file.path)
    return max(0, (file.size or 0) - (growing.stat().st_size if growing.is_file() else 0))


def _known(manifest: Manifest, file: ModelFile, origin: str) -> FileRecord | None:
    """What an earlier pull from the same place recorded: of this file, or else the revision.

    A pull that was broken off is finished at the revision it began with.
    """
    record = manifest.files.get(file.path)
    if record and record.source == origin:
        return record
    same = (each.revision for each in manifest.files.values() if each.source == origin and each.revision)
    revision = next(same, None)
    return FileRecord("", 0, 0, origin, revision) if revision else None


def _compare(partial: Path, file: ModelFile, remote: Remote, known: FileRecord | None) -> tuple[str, str]:
    """The SHA-256 of what was fetched, and what is wrong with it, if anything."""
    found = sha256_of(partial)
    expected = file.sha256 or (known.sha256 if known else "") or remote.sha256
    if expected not in {None, found}:
        return found, f"expected sha256 {expected}, found {found}"
    if expected is None and remote.git_sha1 not in {None, git_blob_sha1(partial)}:
        return found, f"expected git blob {remote.git_sha1}, found sha256 {found}"
    if expected is None and remote.size not in {None, partial.stat().st_size}:
        return found, f"expected {remote.size} bytes, found {partial.stat().st_size}"
    return found, ""


def _copy(source: Path, partial: Path) -> None:
    """Make `partial` a real file with the content of `source`, without copying where possible.

    Not a symbolic link: ONNX Runtime refuses graphs whose data lies behind one.
    """
    discard(partial)
    with writing(partial):
        try:
            os.link(source, partial)
        except OSError as exc:
            if exc.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES}:
                raise
            shutil.copyfile(source, partial)
