"""A card for a folder of one's own: what its files say, what `card.toml` adds, what the caller says.

The later of the three wins. From the files come architecture, kind and width and, where the folder was
written by sentence-transformers, pooling, length, normalisation and prompts; that is often all there
is to say. What cannot be known is asked for, with the line to write.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_args

from resilient_ai._models.cards import ModelCard, Pooling
from resilient_ai._models.catalogue import builtin_catalogue
from resilient_ai._models.graphs import Identity, identify
from resilient_ai._models.graphs.weights import M3_FILES, weight_files
from resilient_ai._models.probing import GraphProbe, probe_graph
from resilient_ai._models.small_files import (
    length_of,
    odd_modules,
    pooling_of,
    prompts_of,
    read_json,
    score_of,
)
from resilient_ai._models.verify import external_data
from resilient_ai.errors import ConfigurationError, ModelNotFound

__all__ = ["card_from_folder"]

_GRAPHS: Final = ("model.onnx", "onnx/model.onnx")
_RECIPE: Final = (
    "max_tokens",
    "pooling",
    "normalize",
    "score",
    "padding_side",
    "query_prompt",
    "document_prompt",
    "default_instruction",
    "pair_prompt",
    "end_token",
    "query_share",
    "type_ids",
)
"""What a model has in common with the one it was made from."""


@dataclass(frozen=True, slots=True)
class _Contents:
    """What lies in a folder. `identity` is that of its weights, `probe` of its graph: of what is run."""

    folder: Path
    config: Mapping[str, Any]
    weights: tuple[str, ...]
    graph: Path | None
    identity: Identity | None
    probe: GraphProbe | None


def card_from_folder(folder: Path, **overrides: Any) -> ModelCard:
    """Describe the model in a folder: weights or ONNX, `tokenizer.json`, perhaps `card.toml`.

    `overrides` are fields of the card, in the form they have in TOML; None is as good as absent.
    Beside the fields there may be `like`, the name of a model in the catalogue that this one was made
    from: prompts, pooling, lengths and scores are the same then.

    Raises:
        ModelNotFound: the folder, the model in it or its tokenizer is missing.
        ConfigurationError: `card.toml` is wrong, contradicts the files, or does not say what cannot be
            known otherwise.
        ModelCorrupt: a file cannot be read.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise ModelNotFound(f"There is no folder {folder}.")
    said = _from_card_file(folder) | {key: value for key, value in overrides.items() if value is not None}
    recipe = _recipe_of(said.pop("like", None))
    contents = _look(folder, said)
    table = _from_files(contents, said.get("kind")) | recipe | said
    table.setdefault("name", folder.name)
    table.setdefault("files", list(_files(contents)))
    table["sources"] = [*table.get("sources", []), {"kind": "folder", "location": str(folder)}]
    _require(contents, table)
    try:
        return ModelCard.from_table(table)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{exc} Say it in {folder / 'card.toml'}.") from exc


def _from_card_file(folder: Path) -> dict[str, Any]:
    path = folder / "card.toml"
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{path} is not TOML: {exc}") from exc


def _recipe_of(name: str | None) -> dict[str, Any]:
    """The fields of a known model that hold for those made from it."""
    if name is None:
        return {}
    fields = asdict(builtin_catalogue().find(name))
    return {key: fields[key] for key in _RECIPE if fields[key] is not None}


def _look(folder: Path, said: Mapping[str, Any]) -> _Contents:
    config, graph, weights = read_json(folder / "config.json"), _graph(folder), _weights(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelNotFound(f"{folder} has no tokenizer.json. Save the model's fast tokenizer there.")
    if not weights and graph is None:
        raise ModelNotFound(f"{folder} has neither weights (model.safetensors) nor a graph (model.onnx).")
    identity = _identity(folder, has_graph=graph is not None) if weights and "family" not in said else None
    # A family that was said is one of weights, unless there are none.
    is_run = graph is not None and identity is None and (not weights or said.get("family", "onnx") == "onnx")
    probe = probe_graph(graph) if graph is not None and is_run else None
    return _Contents(folder, config, () if is_run else weights, graph, identity, probe)


def _identity(folder: Path, *, has_graph: bool) -> Identity | None:
    """Which graph the weights make; None where there is a graph, and none can be made."""
    odd = odd_modules(folder)
    if odd and not has_graph:
        raise ConfigurationError(
            f"{folder / 'modules.json'}: no graph can be built with {', '.join(odd)}. "
            "Use an ONNX export of this model instead."
        )
    try:
        return None if odd else identify(folder)
    except ConfigurationError:
        if has_graph:
            return None
        raise


def _from_files(contents: _Contents, kind: str | None) -> dict[str, Any]:
    """The fields of a card, as far as the files tell; `kind` where it need not be found out."""
    folder, config, identity = contents.folder, contents.config, contents.identity
    table = {"kind": kind or _kind(contents), "family": identity.family if identity else "onnx"}
    table |= length_of(folder, config)
    if table["kind"] == "reranker":
        return table | score_of(config) | {"type_ids": _has_types(contents)}
    table |= pooling_of(folder) | prompts_of(folder) | _dimension(contents)
    if identity is not None and identity.pooling is not None:
        table["pooling"] = identity.pooling
    return table | ({"multi": True} if identity is not None and identity.multi else {})


def _kind(contents: _Contents) -> str:
    identity, probe = contents.identity, contents.probe
    if identity is not None:
        return "reranker" if identity.head == "score" else "embedding"
    if probe is not None and (probe.gives_vectors or probe.gives_tokens) is not probe.gives_scores:
        return "reranker" if probe.gives_scores else "embedding"
    architectures = " ".join(contents.config.get("architectures") or [])
    return "reranker" if "SequenceClassification" in architectures else "embedding"


def _has_types(contents: _Contents) -> bool:
    """Whether the model tells the two texts of a pair apart."""
    if contents.probe is not None:
        return contents.probe.takes_types
    kinds = contents.config.get("type_vocab_size", 1)
    return isinstance(kinds, int) and kinds > 1


def _dimension(contents: _Contents) -> dict[str, Any]:
    told = contents.probe.dimension if contents.probe is not None else None
    dimension = told or contents.config.get("hidden_size") or contents.config.get("n_embd")
    return {"dimension": dimension} if isinstance(dimension, int) else {}


def _files(contents: _Contents) -> Iterator[dict[str, Any]]:
    folder, graph = contents.folder, contents.graph
    yield {"path": "tokenizer.json", "role": "tokenizer"}
    if (folder / "config.json").is_file():
        yield {"path": "config.json", "role": "config"}
    yield from ({"path": name, "role": "weights"} for name in contents.weights)
    if graph is not None:
        yield {"path": graph.relative_to(folder).as_posix(), "role": "graph"}
        inside = graph.parent.relative_to(folder)
        yield from (
            {"path": (inside / name).as_posix(), "role": "graph-data"} for name in external_data(graph)
        )


def _weights(folder: Path) -> tuple[str, ...]:
    """The files that a graph is built from; none where they are not whole or of no known name."""
    try:
        files = weight_files(folder)
    except ModelNotFound:
        return ()
    further = [name for name in M3_FILES if (folder / name).is_file()]
    return (*(file.name for file in files), *further)


def _graph(folder: Path) -> Path | None:
    """The usual graph, or the only one there is."""
    for usual in _GRAPHS:
        if (folder / usual).is_file():
            return folder / usual
    graphs = sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
    if len(graphs) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in graphs)
        raise ConfigurationError(
            f"{folder} has several graphs ({names}). Name one model.onnx, or list `files`."
        )
    return graphs[0] if graphs else None


def _require(contents: _Contents, table: Mapping[str, Any]) -> None:
    """Ask for what nobody has said, and refuse what the graph contradicts."""
    probe = contents.probe
    gives = ", ".join(probe.outputs) if probe is not None else ""
    if table["kind"] == "reranker":
        if probe is not None and not probe.gives_scores:
            raise _ask(contents, f"its graph gives {gives}, and no scores", 'kind = "embedding"')
        if (
            contents.identity is not None
            and contents.identity.family == "qwen3"
            and "pair_prompt" not in table
        ):
            raise _ask(contents, "nothing says what it reads around a pair", 'like = "qwen3_reranker"')
        return
    has_vectors = probe is not None and probe.gives_vectors
    if probe is not None and not (has_vectors or probe.gives_tokens):
        raise _ask(contents, f"its graph gives {gives}, and no vectors", 'kind = "reranker"')
    if "dimension" not in table:
        raise _ask(contents, "nothing says how long its vectors are", "dimension = 768")
    told = probe.dimension if probe is not None else None
    if told is not None and told != table["dimension"]:
        raise _ask(
            contents, f"its graph gives vectors of {told}, not {table['dimension']}", f"dimension = {told}"
        )
    if table.get("pooling") is None and not has_vectors:
        known = ", ".join(get_args(Pooling))
        what = f"nothing says how the vectors of its tokens become one: by pooling ({known})"
        raise _ask(contents, what, 'pooling = "mean"')


def _ask(contents: _Contents, what: str, line: str) -> ConfigurationError:
    card = contents.folder / "card.toml"
    return ConfigurationError(
        f"The model in {contents.folder} cannot be used yet: {what}. Write the right line into {card}, "
        f"such as: {line}"
    )
