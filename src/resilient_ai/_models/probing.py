"""What a finished graph gives, as far as its outputs tell: vectors, token vectors, scores, how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resilient_ai._models.graphs import describe_graph

__all__ = ["GraphProbe", "probe_graph"]

_LARGEST: Final = 256 * 1024 * 1024
"""Bytes of a graph up to which it is looked into: what keeps its weights inside is read with them."""

_VECTORS: Final = ("sentence_embedding", "pooled", "dense_vecs")
_TOKENS: Final = ("token_embeddings", "last_hidden_state")
_SCORES: Final = ("logits",)

_Dims = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class GraphProbe:
    """What a graph gives; `dimension` is the length of its vectors, None where it is not stated."""

    outputs: tuple[str, ...]
    gives_vectors: bool
    gives_tokens: bool
    gives_scores: bool
    takes_types: bool
    dimension: int | None


def probe_graph(path: Path) -> GraphProbe | None:
    """Look at a graph's outputs; None for one that is too large to look into.

    Raises:
        ModelCorrupt: it is not an ONNX graph.
    """
    if path.stat().st_size > _LARGEST:
        return None
    told = describe_graph(path)
    outputs = {name: told.dims[name] for name in told.outputs if not name.startswith("present")}
    vectors, tokens = _find(outputs, _VECTORS, _is_vector), _find(outputs, _TOKENS, _is_matrix)
    widths = [outputs[name][-1] for name in (vectors, tokens) if name is not None and outputs[name]]
    return GraphProbe(
        outputs=tuple(outputs),
        gives_vectors=vectors is not None,
        gives_tokens=tokens is not None,
        gives_scores=_find(outputs, _SCORES, _is_score) is not None,
        takes_types="token_type_ids" in told.inputs,
        dimension=next((width for width in widths if isinstance(width, int)), None),
    )


def _find(outputs: Mapping[str, _Dims], names: tuple[str, ...], fits: Callable[[_Dims], bool]) -> str | None:
    """The output of one of these names, or the only one there is, if its shape is right."""
    for name in names:
        if name in outputs:
            return name
    known = {*_VECTORS, *_TOKENS, *_SCORES}
    return next(
        (name for name in outputs if len(outputs) == 1 and name not in known and fits(outputs[name])), None
    )


def _is_vector(dims: _Dims) -> bool:
    return len(dims) == 2 and dims[-1] not in {1, 2}  # noqa: PLR2004 - a row a text


def _is_matrix(dims: _Dims) -> bool:
    return len(dims) == 3  # noqa: PLR2004 - a row a token


def _is_score(dims: _Dims) -> bool:
    return len(dims) == 1 or (len(dims) == 2 and dims[-1] in {1, 2})  # noqa: PLR2004 - one, or no and yes
