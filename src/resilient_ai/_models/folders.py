"""A card for a folder of one's own: what its files say, what `card.toml` adds, what the caller says.

The later of the three wins. From the files come the architecture, the width and, where the
folder was written by sentence-transformers, pooling, length, normalisation and prompts; that is
often all there is to say.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from resilient_ai._models.cards import ModelCard
from resilient_ai._models.verify import external_data
from resilient_ai.errors import ConfigurationError, ModelNotFound

__all__ = ["card_from_folder"]

_FAMILIES: Final[Mapping[str, str]] = {
    "bert": "bert",
    "xlm-roberta": "xlm-roberta",
    "mpnet": "mpnet",
    "nomic_bert": "nomic-bert",
    "qwen3": "qwen3",
}
_POOLINGS: Final[Mapping[str, str]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last_token",
}
_GRAPHS: Final = ("model.onnx", "onnx/model.onnx")


def card_from_folder(folder: Path, **overrides: Any) -> ModelCard:
    """Describe the model in a folder: ONNX or safetensors, `tokenizer.json`, perhaps `card.toml`.

    `overrides` are fields of the card, in the form they have in TOML; None is as good as absent.

    Raises:
        ModelNotFound: the folder, the model in it or its tokenizer is missing.
        ConfigurationError: `card.toml` is wrong, or something cannot be known without it.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise ModelNotFound(f"There is no folder {folder}.")
    table = _from_files(folder) | _from_card_file(folder)
    table |= {key: value for key, value in overrides.items() if value is not None}
    table.setdefault("name", folder.name)
    table.setdefault("files", list(_files(folder)))
    table["sources"] = [*table.get("sources", []), {"kind": "folder", "location": str(folder)}]
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


def _from_files(folder: Path) -> dict[str, Any]:
    config = _json(folder / "config.json")
    architectures = " ".join(config.get("architectures") or [])
    table: dict[str, Any] = {
        "kind": "reranker" if "SequenceClassification" in architectures else "embedding",
        "family": _FAMILIES.get(config.get("model_type", ""), "onnx"),
    }
    if table["kind"] == "reranker":
        two_types = config.get("type_vocab_size", 1) > 1
        return table | {"score": "sigmoid", "type_ids": two_types} | _length(folder, config)
    return table | _width(config) | _pooling(folder) | _prompts(folder) | _length(folder, config)


def _width(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"dimension": config["hidden_size"]} if "hidden_size" in config else {}


def _pooling(folder: Path) -> dict[str, Any]:
    config = _json(folder / "1_Pooling" / "config.json")
    modes = [mode for flag, mode in _POOLINGS.items() if config.get(flag)]
    table: dict[str, Any] = {"pooling": modes[0]} if len(modes) == 1 else {}
    modules = _json(folder / "modules.json", default=[])
    if modules:
        table["normalize"] = any(str(module.get("type", "")).endswith("Normalize") for module in modules)
    return table


def _prompts(folder: Path) -> dict[str, Any]:
    prompts = _json(folder / "config_sentence_transformers.json").get("prompts") or {}
    named = {"query_prompt": prompts.get("query"), "document_prompt": prompts.get("document")}
    return {key: f"{prefix}{{text}}" for key, prefix in named.items() if prefix}


def _length(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    length = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    return {"max_tokens": length or min(config.get("max_position_embeddings", 512), 512)}


def _files(folder: Path) -> Iterator[dict[str, Any]]:
    if not (folder / "tokenizer.json").is_file():
        raise ModelNotFound(f"{folder} has no tokenizer.json. Save the model's fast tokenizer there.")
    yield {"path": "tokenizer.json", "role": "tokenizer"}
    if (folder / "config.json").is_file():
        yield {"path": "config.json", "role": "config"}
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    graph = _graph(folder)
    if not weights and graph is None:
        raise ModelNotFound(f"{folder} has neither *.safetensors nor an ONNX graph.")
    yield from ({"path": name, "role": "weights"} for name in weights)
    if graph is not None:
        yield {"path": graph.relative_to(folder).as_posix(), "role": "graph"}
        inside = graph.parent.relative_to(folder)
        yield from (
            {"path": (inside / name).as_posix(), "role": "graph-data"} for name in external_data(graph)
        )


def _graph(folder: Path) -> Path | None:
    """The usual graph, or the only one there is."""
    for usual in _GRAPHS:
        if (folder / usual).is_file():
            return folder / usual
    graphs = sorted(folder.glob("*.onnx"))
    if len(graphs) > 1:
        names = ", ".join(path.name for path in graphs)
        raise ConfigurationError(
            f"{folder} has several graphs ({names}). Name one model.onnx, or list `files`."
        )
    return graphs[0] if graphs else None


def _json(path: Path, default: Any = None) -> Any:
    """The document in a file; an empty one where there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {} if default is None else default
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not JSON: {exc}") from exc
