"""The frozen values that pass between stages, and the one seam they pass through.

::

    texts --encode--> Tokens --collate--> Batch --Backend.run--> Vectors --scatter--> Embeddings / Ranking

Arrays inside these values are shared, not copied: treat them as read-only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Backend",
    "Batch",
    "BoolArray",
    "Embeddings",
    "FloatArray",
    "IntArray",
    "MultiEmbeddings",
    "Priority",
    "RankedDocument",
    "Ranking",
    "Task",
    "Tokens",
    "Vectors",
]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

Priority = Literal["interactive", "bulk"]

Task = Literal["embed", "pool", "score", "maxsim", "multi"]
"""What a batch asks for: one L2-normalised vector a row ("embed"), the same before normalisation
("pool"), one cross-encoder logit a row ("score"), one late-interaction score a row against
`Batch.shared_ids` ("maxsim"), or a vector and everything a model says of each token ("multi")."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The token ids of n texts (or text pairs), packed end to end without padding.

    `ids` is int64 (total,), `offsets` int64 (n + 1,): text *i* owns
    `ids[offsets[i]:offsets[i + 1]]`. `type_ids` is int64 (total,) for models that tell the two
    halves of a pair apart, else None. `truncated[i]` says that text *i* was cut to fit.
    """

    ids: IntArray
    offsets: IntArray
    truncated: BoolArray
    type_ids: IntArray | None = None

    def __len__(self) -> int:
        return len(self.truncated)

    @property
    def lengths(self) -> IntArray:
        """Tokens per text, special tokens included, shape (n,)."""
        return np.diff(self.offsets)

    def row(self, index: int) -> IntArray:
        """The ids of one text."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of token ids, padded to the longest, ready for a device.

    `input_ids` and `attention_mask` are int64 (rows, longest); `lengths` is (rows,) and counts
    the real tokens. `type_ids` is int64 (rows, longest) or None. `shared_ids` are tokens that
    belong to every row: the query of a late-interaction batch, and in a batch of scores what every
    row begins with, so that a row alone is only the rest of its text. `due` and `deadline` are
    `time.monotonic` instants (seconds): when the first of its callers stops waiting (None: nobody has
    a limit), and when the last one does (None: somebody waits without limit).
    """

    model: str
    task: Task
    input_ids: IntArray
    attention_mask: IntArray
    lengths: IntArray
    type_ids: IntArray | None = None
    shared_ids: IntArray | None = None
    due: float | None = None
    deadline: float | None = None
    priority: Priority = "interactive"

    @property
    def rows(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def tokens(self) -> int:
        """Real tokens in the batch, padding not counted."""
        return int(self.lengths.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """What a device answered: `values` is float32 (rows, dim), one row per row of the batch.

    `device` names who really computed it ("gpu", "cpu", "simulated"); `degraded` says that a
    lower tier answered than the one that should be up; `seconds` is the device's own time, waiting
    for it not counted (0 where nobody measured it). `tokens` is there for the task "multi" only:
    float32 (all real tokens, 1 + dim), row after row, of each token its lexical weight and then its
    L2-normalised vector.
    """

    values: FloatArray
    device: str
    degraded: bool = False
    seconds: float = 0.0
    tokens: FloatArray | None = None


class Backend(Protocol):
    """Anything that runs a batch. Resilience is made by wrapping one in another.

    `run` is thread-safe and blocks until the answer or a `ResilientAIError`; rows keep their
    order. `close` frees what the backend holds, may be called twice and from any thread.
    """

    @property
    def device(self) -> str: ...

    def run(self, batch: Batch) -> Vectors: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Vectors in the order of the texts, and where each came from.

    `vectors` is float32 (n, dimensions); `token_counts` is (n,), special tokens included;
    `truncated` is (n,) and marks texts that were longer than the model takes; `served_by` names
    the device per row; `degraded` says that some row came from a lower tier than should be up.
    """

    vectors: FloatArray
    model: str
    dimensions: int
    token_counts: IntArray
    truncated: BoolArray
    served_by: tuple[str, ...]
    degraded: bool
    elapsed_ms: float

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        devices = ",".join(sorted(set(self.served_by))) or "-"
        return (
            f"<Embeddings {self.vectors.shape[0]}x{self.dimensions} model={self.model!r} "
            f"served_by={devices} degraded={self.degraded} {self.elapsed_ms:.1f} ms>"
        )


@dataclass(frozen=True, slots=True, eq=False)
class MultiEmbeddings:
    """Dense, sparse and token vectors of the same texts, from one pass of a model that gives all three.

    `dense` is float32 (n, dimensions), L2-normalised. `sparse[i]` maps the ids of text *i*'s tokens to
    their lexical weights, all above 0. `colbert[i]` is float32 (tokens, dim), one L2-normalised vector
    for each token but the first. The rest is as in `Embeddings`.
    """

    dense: FloatArray
    sparse: tuple[dict[int, float], ...]
    colbert: tuple[FloatArray, ...]
    model: str
    token_counts: IntArray
    truncated: BoolArray
    served_by: tuple[str, ...]
    degraded: bool
    elapsed_ms: float

    def __len__(self) -> int:
        return len(self.dense)

    def __repr__(self) -> str:
        devices = ",".join(sorted(set(self.served_by))) or "-"
        return (
            f"<MultiEmbeddings {len(self)} texts model={self.model!r} served_by={devices} "
            f"degraded={self.degraded} {self.elapsed_ms:.1f} ms>"
        )


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One document of a ranking: its place in the caller's list, its score, its text."""

    index: int
    score: float
    document: str


@dataclass(frozen=True, slots=True, eq=False)
class Ranking(Sequence[RankedDocument]):
    """Documents by falling score (ties keep the caller's order), and who scored them.

    `token_counts`, `truncated` and `served_by` are in the order of the *caller's* documents, all
    of them, also those that `top_k` left out.
    """

    documents: tuple[RankedDocument, ...]
    model: str
    token_counts: IntArray
    truncated: BoolArray
    served_by: tuple[str, ...]
    degraded: bool
    elapsed_ms: float

    def __len__(self) -> int:
        return len(self.documents)

    def __iter__(self) -> Iterator[RankedDocument]:
        return iter(self.documents)

    @overload
    def __getitem__(self, index: int) -> RankedDocument: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RankedDocument, ...]: ...
    def __getitem__(self, index: int | slice) -> RankedDocument | tuple[RankedDocument, ...]:
        return self.documents[index]

    def __repr__(self) -> str:
        best = f" best={self.documents[0].index}:{self.documents[0].score:.4f}" if self else ""
        return f"<Ranking {len(self)} documents model={self.model!r}{best} {self.elapsed_ms:.1f} ms>"
