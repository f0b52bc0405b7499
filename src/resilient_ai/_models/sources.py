"""The places a model's files can be downloaded from: the hub, and any web server that has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from resilient_ai._models.cards import ModelFile, ModelSource
from resilient_ai._models.download import Downloader, Remote, SourceFailed, Transient

__all__ = ["HttpSource", "HubSource", "RemoteSource", "remote_source"]

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHA1: Final = re.compile(r"[0-9a-f]{40}")


class RemoteSource(Protocol):
    """A place to download from."""

    def origin(self, file: ModelFile) -> str:
        """Where exactly the file comes from, for manifests and messages."""

    def cached(self, file: ModelFile, revision: str | None = None) -> Path | None:
        """A copy of the file that some other tool left on this machine; no network."""

    def resolve(self, file: ModelFile, revision: str | None = None) -> Remote:
        """Find out where the file is to be had; `revision` is that of an earlier pull.

        Raises:
            SourceFailed: it is not to be had here.
        """


def remote_source(source: ModelSource, downloader: Downloader) -> RemoteSource | None:
    """What downloads from `source`; None for one that is on this machine."""
    if source.kind == "hub":
        return HubSource(source.location, source.revision, downloader)
    if source.kind == "http":
        return HttpSource(source.location)
    return None


class HttpSource:
    """Any web server that has the files under their paths."""

    def __init__(self, base: str) -> None:
        self._base = base.rstrip("/")

    def origin(self, file: ModelFile) -> str:  # noqa: ARG002  # a mirror has all files in one place
        return self._base

    def cached(self, file: ModelFile, revision: str | None = None) -> Path | None:  # noqa: ARG002  # nothing is kept
        return None

    def resolve(self, file: ModelFile, revision: str | None = None) -> Remote:  # noqa: ARG002  # one version only
        return Remote(f"{self._base}/{quote(file.path)}", size=file.size, sha256=file.sha256)


class HubSource:
    """A repository on the Hugging Face hub.

    What the file is (commit, hash, size) and who may have it is the business of
    `huggingface_hub`, which reads HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE. Its own
    download keeps no part of a file that was cut off, so the bytes are fetched by `Downloader`.
    """

    def __init__(self, repository: str, revision: str | None, downloader: Downloader) -> None:
        self._repository = repository
        self._revision = revision
        self._downloader = downloader
        self._commits: dict[str, str] = {}

    def origin(self, file: ModelFile) -> str:
        return f"hub:{file.repository or self._repository}"

    def cached(self, file: ModelFile, revision: str | None = None) -> Path | None:
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  # heavy; only for a pull

        repository, wanted = self._address(file, revision)
        found = try_to_load_from_cache(repository, file.path, revision=wanted)
        return Path(found).resolve() if isinstance(found, str) else None

    def resolve(self, file: ModelFile, revision: str | None = None) -> Remote:
        from huggingface_hub import hf_hub_url  # noqa: PLC0415  # heavy; only for a pull
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # noqa: PLC0415

        repository, wanted = self._address(file, revision)
        url = hf_hub_url(repository, file.path, revision=wanted)
        metadata = self._downloader.retry(lambda: _metadata(url, repository, file.path))
        commit = metadata.commit_hash or wanted
        if commit:
            # Later files come from the same commit, whatever is pushed in the meantime.
            self._commits.setdefault(repository, commit)
        etag = metadata.etag or ""
        return Remote(
            hf_hub_url(repository, file.path, revision=commit),
            headers=build_hf_headers(library_name="resilient_ai"),
            size=metadata.size,
            sha256=etag if _SHA256.fullmatch(etag) else None,
            git_sha1=etag if _SHA1.fullmatch(etag) else None,
            revision=commit,
        )

    def _address(self, file: ModelFile, revision: str | None) -> tuple[str, str | None]:
        repository = file.repository or self._repository
        pinned = self._revision if repository == self._repository else None
        return repository, pinned or revision or self._commits.get(repository)


def _metadata(url: str, repository: str, path: str) -> Any:
    """Ask the hub what a file is, and translate what it says instead."""
    from huggingface_hub import errors, get_hf_file_metadata  # noqa: PLC0415  # heavy; only for a pull

    try:
        return get_hf_file_metadata(url)
    except errors.OfflineModeIsEnabled as exc:
        raise SourceFailed(f"HF_HUB_OFFLINE is set, so {repository} was not asked") from exc
    except errors.GatedRepoError as exc:
        raise SourceFailed(f"{repository} is gated: accept its terms on the hub and set HF_TOKEN") from exc
    except errors.RepositoryNotFoundError as exc:
        raise SourceFailed(f"the hub has no {repository}, or it is private and HF_TOKEN is not set") from exc
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as exc:
        raise SourceFailed(f"{repository} has no {path} at that revision") from exc
    except ValueError as exc:
        raise SourceFailed(f"{repository}/{path} is no address of the hub: {exc}") from exc
    # The transport's errors have been those of requests, httpx and httpx2 from release to release.
    except Exception as exc:
        raise Transient(f"{url} could not be asked for: {type(exc).__name__}: {exc}") from exc
