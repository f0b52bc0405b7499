"""Looking at a model's files where they lie: what is there, and is it what it should be?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from resilient_ai._models.cards import Body, FileRole, ModelCard, ModelFile
from resilient_ai._models.installed import FileReport, InstalledModel
from resilient_ai._models.manifest import FileRecord, Manifest
from resilient_ai._models.places import Location
from resilient_ai._models.verify import external_data, sha256_of, stamp_of

__all__ = ["Inspection", "inspect", "is_present"]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found of one body of a model in one location."""

    card: ModelCard
    body: Body
    location: Location
    reports: tuple[FileReport, ...]
    records: Mapping[str, FileRecord]

    @property
    def ok(self) -> bool:
        return all(report.verdict == "ok" for report in self.reports)

    def wanted(self) -> list[ModelFile]:
        """The files that have to be fetched."""
        return [report.file for report in self.reports if report.verdict != "ok"]

    def installed(self, cache_dir: Path) -> InstalledModel:
        """The model, given that all is well."""
        files: dict[FileRole, list[Path]] = {}
        for report in self.reports:
            files.setdefault(report.file.role, []).append(report.path)
        main = next(record for path, record in self.records.items() if self._is_body(path))
        return InstalledModel(
            card=self.card,
            folder=self.location.folder,
            body=self.body,
            files=MappingProxyType({role: tuple(paths) for role, paths in files.items()}),
            sha256=MappingProxyType({path: record.sha256 for path, record in self.records.items()}),
            source=main.source or self.location.source,
            revision=main.revision,
            cache_dir=cache_dir,
        )

    def _is_body(self, path: str) -> bool:
        return any(r.file.path == path and r.file.role == self.body for r in self.reports)


def is_present(card: ModelCard, body: Body, location: Location, manifest: Manifest) -> bool:
    """Whether all files are there with the sizes they should have; reads none of them."""
    return all(
        _looks_right(file, location.folder / file.path, _binding(file, location, manifest))
        for file in card.files_for(body)
        if not file.optional or (location.folder / file.path).exists()
    )


def _binding(file: ModelFile, location: Location, manifest: Manifest) -> FileRecord | None:
    """The record that the file has to match; none of a file that is somebody else's to change."""
    return manifest.files.get(file.path) if location.owned else None


def _looks_right(file: ModelFile, path: Path, record: FileRecord | None) -> bool:
    expected = file.size if file.size is not None else (record.size if record else None)
    return path.is_file() and expected in {None, path.stat().st_size}


def inspect(
    card: ModelCard, body: Body, location: Location, manifest: Manifest, *, thorough: bool = False
) -> Inspection:
    """Verify the files of one body.

    A file whose stamp is the recorded one is taken as read, unless `thorough`. The files a
    graph keeps its weights in are looked for too, whether or not the card lists them.
    """
    reports: list[FileReport] = []
    records: dict[str, FileRecord] = {}
    waiting = list(card.files_for(body))
    while waiting:
        file = waiting.pop(0)
        path = location.folder / file.path
        if file.optional and not path.is_file():
            continue
        report, record = _look(file, path, manifest.files.get(file.path), location, thorough=thorough)
        reports.append(report)
        if record is not None:
            records[file.path] = record
            seen = [*(r.file.path for r in reports), *(f.path for f in waiting)]
            waiting += _sidecars(file, record.external, seen)
    return Inspection(card, body, location, tuple(reports), records)


def _look(
    file: ModelFile, path: Path, known: FileRecord | None, location: Location, *, thorough: bool
) -> tuple[FileReport, FileRecord | None]:
    """A report, and what to record when the file is as it should be."""
    expected = file.sha256 or (known.sha256 if known and location.owned else None)
    if not path.is_file():
        return FileReport(file, path, "missing", expected), None
    stamp = stamp_of(path)
    if known and known.stamp == stamp and known.sha256 == (expected or known.sha256) and not thorough:
        return FileReport(file, path, "ok", expected, known.sha256), known
    found = sha256_of(path)
    if expected not in {None, found}:
        return FileReport(file, path, "altered", expected, found), None
    origin = (known.source, known.revision) if known and known.sha256 == found else (None, None)
    external = external_data(path) if file.role == "graph" else ()
    return FileReport(file, path, "ok", expected, found), FileRecord(found, *stamp, *origin, external)


def _sidecars(graph: ModelFile, names: Iterable[str], seen: list[str]) -> list[ModelFile]:
    folder = PurePosixPath(graph.path).parent
    paths = [str(folder / name) for name in names]
    return [ModelFile(path, "graph-data", repository=graph.repository) for path in paths if path not in seen]
