"""A model whose files are on disk and verified, and the report of how that was found out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resilient_ai._models.cards import Body, FileRole, ModelCard, ModelFile
from resilient_ai.errors import ModelCorrupt

__all__ = ["FileReport", "InstalledModel", "Verdict", "VerifyReport"]

Verdict = Literal["ok", "missing", "altered"]


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file, what was expected of it and what was found.

    `expected` and `found` are SHA-256 hashes or None: nothing is expected of a file that is
    seen for the first time without a pin, nothing is found of a missing one.
    """

    file: ModelFile
    path: Path
    verdict: Verdict
    expected: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        if self.verdict == "ok":
            return f"{self.path}: ok"
        if self.verdict == "missing":
            return f"{self.path}: missing"
        return f"{self.path}: expected sha256 {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What every file of a model was found to be, each read in full."""

    model: str
    folder: Path
    files: tuple[FileReport, ...]

    @property
    def ok(self) -> bool:
        return bool(self.files) and all(report.verdict == "ok" for report in self.files)

    def raise_for_files(self) -> None:
        """Raise `ModelCorrupt` that names what is wrong and what to do; nothing when all is well."""
        wrong = "; ".join(str(report) for report in self.files if report.verdict != "ok")
        if wrong:
            raise ModelCorrupt(f"Model {self.model!r} is damaged: {wrong}. Fetch it again by pulling it.")


@dataclass(frozen=True, slots=True, eq=False)
class InstalledModel:
    """A model ready to be loaded: every file is there and has been verified.

    `body` says whether to build a graph from the weights or to use the finished one. `files`
    has the paths by role, `sha256` the hash by path relative to `folder`. `cache_dir` is a
    folder of this model's own for what is derived from the files; it may not exist yet, and is
    writable unless the whole store is read-only.
    """

    card: ModelCard
    folder: Path
    body: Body
    files: Mapping[FileRole, tuple[Path, ...]]
    sha256: Mapping[str, str]
    source: str
    revision: str | None
    cache_dir: Path

    def __repr__(self) -> str:
        return f"<InstalledModel {self.card.name} ({self.body}) in {self.folder} from {self.source}>"

    def file(self, role: FileRole) -> Path:
        """The first file of a role.

        Raises:
            ModelCorrupt: the model has none.
        """
        paths = self.files.get(role, ())
        if not paths:
            raise ModelCorrupt(
                f"Model {self.card.name!r} in {self.folder} has no file with the role {role!r}."
            )
        return paths[0]

    @property
    def nbytes(self) -> int:
        """Size of the files that hold the weights."""
        roles: tuple[FileRole, ...] = ("weights",) if self.body == "weights" else ("graph", "graph-data")
        return sum(path.stat().st_size for role in roles for path in self.files.get(role, ()))

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any file does: the key for what is derived from them."""
        lines = "\n".join(f"{path} {digest}" for path, digest in sorted(self.sha256.items()))
        return hashlib.sha256(lines.encode()).hexdigest()[:16]
