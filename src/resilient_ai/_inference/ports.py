"""What a graph takes and what it gives, recognised by names and shapes, whoever exported it.

Inputs that a batch does not have are made: positions, the types of a single text, and the empty
key-value cache of a decoder that was exported for generating. The cache it gives back is never fetched;
the states that this library's own decoders take and give are, and serve all rows that begin alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resilient_ai.errors import ModelCorrupt
from resilient_ai.values import Batch, FloatArray

__all__ = ["Ports", "Shape"]

Shape = tuple[int | str | None, ...]

_SENTENCE: Final = ("sentence_embedding", "dense_vecs")
_POOLED: Final = ("pooled",)
_LOGITS: Final = ("logits",)
_TOKENS: Final = ("token_embeddings", "last_hidden_state")
_TOKEN_WEIGHTS: Final = ("token_weights", "sparse_vecs")
_COLBERT: Final = ("colbert", "colbert_vecs")
_KNOWN: Final = frozenset({*_SENTENCE, *_POOLED, *_TOKENS, *_LOGITS, *_TOKEN_WEIGHTS, *_COLBERT})
_STATES: Final = ("states",)
_BEFORE: Final = "prefix_states"
_KEPT: Final = "kept_tokens"
_CACHE_OUT: Final = "present"
_CACHE_IN: Final = re.compile(r"past_key_values\.\d+\.\w+")
_MATRICES: Final = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

_DTYPES: Final[Mapping[str, type]] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}


class Ports:
    """The inputs and outputs of one graph; immutable.

    Attributes:
        outputs: The names of what may be fetched.
        sentence: The output with one vector a row, as a whole text is compared by; None, here and in the
            following, where the graph has none such. The graph's only output may have any name.
        pooled: The same before it is normalised.
        tokens: One vector a token.
        logits: What a reranker says of each row.
        token_weights: One lexical weight a token.
        colbert: One vector a token, for late interaction.
        states: What a later run takes of this one's first row, so that its rows go on from there.
        by_row: Whether the graph takes only one row at a time.

    Raises:
        ModelCorrupt: The graph wants what nobody can give it; the message says what.
    """

    def __init__(
        self, types: Mapping[str, str], shapes: Mapping[str, Shape], outputs: Mapping[str, Shape]
    ) -> None:
        self._dtypes = {name: _dtype(name, kind) for name, kind in types.items()}
        self._shapes = dict(shapes)
        self._check_inputs()
        self.outputs = tuple(name for name in outputs if not name.startswith(_CACHE_OUT))
        sole = self._sole(outputs)
        self.sentence = self._first(_SENTENCE) or sole.get("sentence")
        self.pooled = self._first(_POOLED)
        self.tokens = self._first(_TOKENS) or sole.get("tokens")
        self.logits = self._first(_LOGITS) or sole.get("logits")
        self.token_weights = self._first(_TOKEN_WEIGHTS)
        self.colbert = self._first(_COLBERT)
        self.states = self._first(_STATES) if {_BEFORE, _KEPT} <= self._dtypes.keys() else None
        self.by_row = self._shapes["input_ids"][:1] == (1,)

    def feeds(
        self, batch: Batch, *, before: FloatArray | None = None, keep: int = 0
    ) -> dict[str, NDArray[Any]]:
        """Everything that the graph takes, for a batch.

        Graphs with `states` take those of the tokens `before` every row, None for no such tokens, and
        give those of the first `keep` tokens of the first row.
        """
        made: dict[str, NDArray[Any]] = {_KEPT: np.array([keep])}
        if before is not None:
            made[_BEFORE] = before
        return {
            name: (made[name] if name in made else self._feed(name, batch)).astype(dtype, copy=False)
            for name, dtype in self._dtypes.items()
        }

    def no_states(self) -> FloatArray:
        """The states of no tokens."""
        return np.empty(self._cache_shape(_BEFORE, 0), np.float32)

    def _feed(self, name: str, batch: Batch) -> NDArray[Any]:
        match name:
            case "input_ids":
                return batch.input_ids
            case "attention_mask":
                return batch.attention_mask
            case "token_type_ids":
                return np.zeros_like(batch.input_ids) if batch.type_ids is None else batch.type_ids
            case "position_ids":
                # From 0 at the first real token, on whichever side the padding is.
                return np.maximum(np.cumsum(batch.attention_mask, axis=1) - 1, 0)
        return np.empty(self._cache_shape(name, batch.rows), self._dtypes[name])

    def _cache_shape(self, name: str, rows: int) -> tuple[int, ...]:
        """The shape of a cache that holds nothing yet: what is not a number is the length of the past."""
        first, *others = self._shapes[name]
        sizes = (size if isinstance(size, int) else 0 for size in others)
        return (first if isinstance(first, int) else rows, *sizes)

    def _check_inputs(self) -> None:
        known = {*_MATRICES, _BEFORE, _KEPT}
        unknown = [name for name in self._dtypes if name not in known and not _CACHE_IN.fullmatch(name)]
        if unknown or "input_ids" not in self._dtypes:
            raise ModelCorrupt(
                f"this graph takes {', '.join(self._dtypes)}; it must take input_ids, and may take "
                "attention_mask, token_type_ids, position_ids and past_key_values.*. Use an export for "
                "feature extraction or for sequence classification"
            )
        for name in self._dtypes:
            if problem := _problem(name, self._shapes[name]):
                raise ModelCorrupt(f"this graph's input {name} has the shape {self._shapes[name]}: {problem}")

    def _first(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in self.outputs), None)

    def _sole(self, outputs: Mapping[str, Shape]) -> dict[str, str]:
        """What the graph's only output is, to go by its shape, where its name does not tell."""
        if len(self.outputs) != 1 or self.outputs[0] in _KNOWN:
            return {}
        (name,) = self.outputs
        match outputs[name]:
            case (_, _, _):
                return {"tokens": name}
            case (_,) | (_, 1 | 2):
                return {"logits": name}
            case (_, size):
                return {"sentence": name} if isinstance(size, int) else {"sentence": name, "logits": name}
        return {}


def _problem(name: str, shape: Shape) -> str:
    """What is wrong with the shape of an input, "" where nothing is."""
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    if name == _KEPT:
        return "" if shape == (1,) else "it is one number"
    if name not in _MATRICES:
        return "" if len(sizes) == len(shape) - 2 else "it does not state heads and size of the cache"
    if sizes:
        return f"it takes texts of exactly {sizes[0]} tokens. Export it with a dynamic sequence axis"
    if isinstance(shape[0], int) and shape[0] > 1:
        return f"it takes exactly {shape[0]} texts at a time. Export it with a dynamic batch axis"
    return ""


def _dtype(name: str, kind: str) -> type:
    if kind not in _DTYPES:
        raise ModelCorrupt(f"this graph's input {name} is a {kind}; known are {', '.join(_DTYPES)}")
    return _DTYPES[kind]
