"""What the library knows about a model, as data: one frozen card per model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final, Literal, NamedTuple, get_args

from resilient_ai._models.tables import read_table
from resilient_ai.errors import ConfigurationError, InvalidInput

__all__ = [
    "BUILDABLE",
    "Body",
    "Family",
    "FileRole",
    "InputType",
    "Kind",
    "ModelCard",
    "ModelFile",
    "ModelSource",
    "PairPrompt",
    "Pooling",
    "Prompt",
    "ScoreRule",
    "SourceKind",
]

Kind = Literal["embedding", "reranker"]
Family = Literal["bert", "xlm-roberta", "mpnet", "nomic-bert", "qwen3", "onnx"]
Pooling = Literal["cls", "mean", "max", "last_token"]
ScoreRule = Literal["sigmoid", "identity"]
FileRole = Literal["weights", "graph", "graph-data", "tokenizer", "config"]
SourceKind = Literal["folder", "hub", "http", "package"]
InputType = Literal["query", "document"]

Body = Literal["weights", "graph"]
"""The two forms a model comes in: weights that a graph is built from, or a finished graph."""

BUILDABLE: Final[frozenset[Family]] = frozenset({"bert", "xlm-roberta", "mpnet", "nomic-bert", "qwen3"})
"""Families whose graph the library builds from the weights, and therefore prefers to."""

_BODY_OF_ROLE: Final[Mapping[FileRole, Body]] = {
    "weights": "weights",
    "graph": "graph",
    "graph-data": "graph",
}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Prompt(NamedTuple):
    """What a model wants to read before and after a text.

    The two halves are kept apart, so that braces in the user's text or instruction stay text.
    """

    prefix: str
    suffix: str

    def apply(self, text: str) -> str:
        """The text as the model wants to read it."""
        return f"{self.prefix}{text}{self.suffix}"


@dataclass(frozen=True, slots=True)
class PairPrompt:
    """What a reranker reads around a pair that is no pair to its tokenizer.

    A row is `prefix`, then the query (by the card's `query_prompt`), `joint` and the document as one
    text, then `suffix`. `prefix` and `suffix` are tokenised apart and never cut, and control tokens
    such as `<|im_end|>` count as such in them alone.
    """

    prefix: str
    joint: str
    suffix: str


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model.

    `path` is relative, with forward slashes, the same in the source and on disk. `sha256` (lower
    case hex) is the pinned hash; None means that the first download records it. `size` is in
    bytes. An `optional` file may be missing at its source. `repository` is the hub repository
    of a file that is not in the card's own one.

    Raises:
        ConfigurationError: a path that leaves the model's folder, an impossible hash or size.
    """

    path: str
    role: FileRole
    sha256: str | None = None
    size: int | None = None
    optional: bool = False
    repository: str | None = None

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        hidden = any(part.startswith(".") for part in parts)
        if not parts or hidden or self.path.startswith("/") or "\\" in self.path:
            raise ConfigurationError(
                f"Model file {self.path!r}: path must be relative, stay inside the model's folder, "
                "and no part of it may begin with a dot."
            )
        if self.role not in get_args(FileRole):
            raise ConfigurationError(f"Model file {self.path!r}: role must be one of {get_args(FileRole)}.")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise ConfigurationError(f"Model file {self.path!r}: sha256 must be 64 lower-case hex digits.")
        if self.size is not None and self.size < 0:
            raise ConfigurationError(f"Model file {self.path!r}: size must not be negative.")

    @property
    def body(self) -> Body | None:
        """The body this file is part of; None for files every body needs."""
        return _BODY_OF_ROLE.get(self.role)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One place the files can come from.

    `location` is, by kind: a folder; a hub repository ("owner/name"); the base URL that file
    paths are appended to; an importable module and the folder inside it ("module/folder").
    `revision` is a commit, tag or branch of a hub repository; None is its default branch.
    """

    kind: SourceKind
    location: str
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(SourceKind):
            kinds = ", ".join(get_args(SourceKind))
            raise ConfigurationError(f"Model source {self.location!r}: kind must be one of {kinds}.")
        if not self.location.strip():
            raise ConfigurationError(f"Model source of kind {self.kind!r}: location must not be empty.")
        if self.kind == "hub" and self.location.count("/") != 1:
            raise ConfigurationError(f"Model source {self.location!r}: a hub repository is 'owner/name'.")
        if self.kind == "http" and not self.location.startswith(("http://", "https://")):
            raise ConfigurationError(f"Model source {self.location!r}: must begin with http:// or https://.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Everything needed to run one model exactly as its authors meant it.

    Attributes:
        name: Unique; also the model's folder under the store's root.
        kind: What the model answers: vectors ("embedding") or one score a pair ("reranker").
        family: Architecture; "onnx" is a graph of unknown make.
        dimension: Length of the vectors; None for rerankers.
        max_tokens: Longest input in tokens, special tokens and prompts included.
        pooling: How token vectors become one; None for rerankers, and for graphs that pool
            themselves (family "onnx" only).
        normalize: Whether the authors L2-normalise the vectors.
        score: How a reranker's logit becomes its score; None for embeddings.
        padding_side: Where padding goes in a batch.
        query_prompt: Template of a query; exactly one `{text}`, perhaps `{instruction}`. The
            pair a reranker reads is its query followed by its document, both by template.
        document_prompt: Template of a document; the same rules.
        default_instruction: Fills `{instruction}` where the caller gives none.
        pair_prompt: What a reranker reads around a pair; None: the tokenizer's own special tokens.
        end_token: What the tokenizer must put at the end of each text of an embedding model, and what
            is put there where an old tokenizer.json does not; None: whatever the tokenizer does.
        query_share: Largest part of `max_tokens` a pair's query may take (of what a `pair_prompt`
            leaves of them), 0 to 1; None: no limit.
        multi: Whether it gives lexical weights and token vectors beside the dense ones.
        type_ids: Whether the model tells the halves of a pair apart by token type ids.
        aliases: Other names it is known by, hub ids among them; looked up without case.
        files: What it consists of; may list both bodies, of which one is fetched.
        sources: Where the files come from, in order; what is local is tried first.
        licence: SPDX id of the weights' licence.
        rank: Place in listings and in the choice of a default; lower is better.
        notes: For people.

    Raises:
        ConfigurationError: at construction, naming the field and the card.
    """

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
    pair_prompt: PairPrompt | None = None
    end_token: str | None = None
    query_share: float | None = None
    multi: bool = False
    type_ids: bool = False
    aliases: tuple[str, ...] = ()
    files: tuple[ModelFile, ...] = ()
    sources: tuple[ModelSource, ...] = ()
    licence: str = ""
    rank: int = 1000
    notes: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise ConfigurationError(f"Model card {self.name!r}: {problem}.")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> ModelCard:
        """Read a card from a TOML table whose keys are the fields.

        Raises:
            ConfigurationError: an unknown key (with the nearest known one), a missing one, a
                value of the wrong type, or a card that contradicts itself.
        """
        return read_table(cls, table, f"Model card {table.get('name', '(without a name)')!r}")

    @property
    def bodies(self) -> tuple[Body, ...]:
        """The bodies the card lists, the preferred one first."""
        listed = {file.body for file in self.files}
        order: tuple[Body, Body] = ("weights", "graph") if self.family in BUILDABLE else ("graph", "weights")
        return tuple(body for body in order if body in listed)

    def files_for(self, body: Body) -> tuple[ModelFile, ...]:
        """The files the model needs when it is run from `body`, optional ones included."""
        return tuple(file for file in self.files if file.body in {None, body})

    def prompt_for(self, input_type: InputType, instruction: str | None = None) -> Prompt:
        """The prompt around one text; `instruction` replaces the card's default one.

        Raises:
            InvalidInput: an instruction for a model that reads none.
        """
        if instruction is not None and self.default_instruction is None:
            raise InvalidInput(f"Model {self.name!r} reads no instruction; leave `instruction` out.")
        template = self.query_prompt if input_type == "query" else self.document_prompt
        chosen = instruction if instruction is not None else (self.default_instruction or "")
        prefix, _, suffix = template.partition("{text}")
        return Prompt(prefix.replace("{instruction}", chosen), suffix.replace("{instruction}", chosen))


def _problems(card: ModelCard) -> Iterator[str]:
    """What contradicts itself in a card, most basic first."""
    yield from _wrong_values(card)
    yield from _wrong_for_kind(card)
    yield from _wrong_prompts(card)
    yield from _wrong_files(card)


def _wrong_values(card: ModelCard) -> Iterator[str]:
    if not _NAME.fullmatch(card.name):
        yield "name must be letters, digits, '.', '_' or '-', beginning with a letter or digit"
    choices = {"kind": Kind, "family": Family, "padding_side": Literal["right", "left"]}
    for name, choice in choices.items():
        if getattr(card, name) not in get_args(choice):
            yield f"{name} must be one of {', '.join(get_args(choice))}, not {getattr(card, name)!r}"
    if card.max_tokens < 1:
        yield f"max_tokens must be at least 1, not {card.max_tokens}"
    if card.query_share is not None and not 0 < card.query_share < 1:
        yield f"query_share must lie between 0 and 1, not {card.query_share}"
    if any(not alias.strip() for alias in card.aliases):
        yield "aliases must not be empty"


def _wrong_for_kind(card: ModelCard) -> Iterator[str]:
    if card.kind == "reranker":
        if card.score not in get_args(ScoreRule):
            yield f"score must be one of {', '.join(get_args(ScoreRule))} for a reranker, not {card.score!r}"
        if card.dimension is not None or card.pooling is not None or card.end_token is not None:
            yield "dimension, pooling and end_token are for embeddings; leave them out for a reranker"
        return
    if card.dimension is None or card.dimension < 1:
        yield f"dimension must be at least 1 for an embedding, not {card.dimension}"
    if card.pooling not in get_args(Pooling) and (card.pooling is not None or card.family != "onnx"):
        yield f"pooling must be one of {', '.join(get_args(Pooling))} for an embedding, not {card.pooling!r}"
    if card.score is not None or card.query_share is not None or card.pair_prompt is not None:
        yield "score, query_share and pair_prompt are for rerankers; leave them out for an embedding"


def _wrong_prompts(card: ModelCard) -> Iterator[str]:
    for name in ("query_prompt", "document_prompt"):
        if getattr(card, name).count("{text}") != 1:
            yield f"{name} must contain {{text}} exactly once"
    reads_instruction = "{instruction}" in card.query_prompt + card.document_prompt
    if reads_instruction and card.default_instruction is None:
        yield "default_instruction must be given, because a prompt contains {instruction}"
    if card.default_instruction is not None and not reads_instruction:
        yield "default_instruction is given, but no prompt contains {instruction}"
    if card.pair_prompt is not None and card.document_prompt != "{text}":
        yield "document_prompt and pair_prompt are both given; what stands before a document is the joint"


def _wrong_files(card: ModelCard) -> Iterator[str]:
    if not card.files:
        return
    paths = [file.path for file in card.files]
    roles = [file.role for file in card.files]
    if len(set(paths)) != len(paths):
        yield "files must not name a path twice"
    if "tokenizer" not in roles:
        yield "files must include one with the role 'tokenizer'"
    if "weights" not in roles and "graph" not in roles:
        yield "files must include one with the role 'weights' or 'graph'"
    if roles.count("graph") > 1:
        yield "files must not include more than one with the role 'graph'"
    if "graph-data" in roles and "graph" not in roles:
        yield "files with the role 'graph-data' need one with the role 'graph'"
