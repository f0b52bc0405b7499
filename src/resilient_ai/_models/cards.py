"""What the library knows about a model, as data: one frozen card per model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["ModelCard", "ModelFile", "ModelSource"]

Kind = Literal["embedding", "reranker"]
Family = Literal["bert", "xlm-roberta", "mpnet", "nomic-bert", "qwen3", "onnx"]
Pooling = Literal["cls", "mean", "max", "last_token"]
ScoreRule = Literal["sigmoid", "identity"]
FileRole = Literal["weights", "graph", "graph-data", "tokenizer", "config"]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model; `sha256` is None until a first download has recorded it."""

    path: str
    role: FileRole
    sha256: str | None = None
    size: int | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One place the files can come from; `location` is a folder, repository, URL or module."""

    kind: Literal["folder", "hub", "http", "package"]
    location: str
    revision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Everything needed to run one model exactly as its authors meant it."""

    name: str
    kind: Kind
    family: Family
    dimension: int | None = None
    max_tokens: int = 512
    pooling: Pooling | None = None
    normalize: bool = True
    score: ScoreRule | None = None
    padding_side: Literal["right", "left"] = "right"
    query_prompt: str = "{text}"
    document_prompt: str = "{text}"
    default_instruction: str | None = None
    query_share: float | None = None
    type_ids: bool = False
    aliases: tuple[str, ...] = ()
    files: tuple[ModelFile, ...] = ()
    sources: tuple[ModelSource, ...] = ()
    licence: str = ""
    rank: int = 1000
    notes: str = field(default="", compare=False)
