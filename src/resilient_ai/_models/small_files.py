"""What the small files beside a model's weights tell: pooling, length, prompts, scores, modules.

They are those of `transformers` and sentence-transformers: config.json, tokenizer_config.json,
modules.json, 1_Pooling/config.json, sentence_bert_config.json, config_sentence_transformers.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from resilient_ai.errors import ConfigurationError

__all__ = ["length_of", "odd_modules", "pooling_of", "prompts_of", "read_json", "score_of"]

_FLAGS: Final[Mapping[str, str]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last_token",
}
_MODES: Final[Mapping[str, str]] = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last_token"}
_MODULES: Final = frozenset({"Transformer", "Pooling", "Normalize"})
_USUAL_LENGTH: Final = 512
_POSITIONS_LOST: Final[Mapping[str, int]] = {"roberta": 2, "xlm-roberta": 2, "mpnet": 2}
"""Positions that no text can have: those families begin to count behind the padding's id."""


def pooling_of(folder: Path) -> dict[str, Any]:
    """`pooling` and `normalize`, where sentence-transformers has written them down."""
    config = read_json(folder / "1_Pooling" / "config.json")
    found = [pooling for flag, pooling in _FLAGS.items() if config.get(flag) is True]
    if not found and (mode := _MODES.get(str(config.get("pooling_mode")))):
        found = [mode]
    table: dict[str, Any] = {"pooling": found[0]} if len(found) == 1 else {}
    if modules := _modules(folder):
        table["normalize"] = "Normalize" in modules
    return table


def odd_modules(folder: Path) -> list[str]:
    """What sentence-transformers runs on top of the model that no graph made here would."""
    return [module for module in _modules(folder) if module not in _MODULES]


def prompts_of(folder: Path) -> dict[str, Any]:
    """The prompts for queries and documents; an empty one is none."""
    prompts = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    named = {
        "query_prompt": prompts.get("query"),
        "document_prompt": prompts.get("document") or prompts.get("passage"),
    }
    return {key: f"{prefix}{{text}}" for key, prefix in named.items() if prefix}


def length_of(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """`max_tokens`: what is written down, else the usual length; never more than there are positions."""
    said = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    positions = config.get("max_position_embeddings", config.get("n_positions", _USUAL_LENGTH))
    positions -= _POSITIONS_LOST.get(config.get("model_type", ""), 0)
    return {"max_tokens": min(said or _USUAL_LENGTH, positions)}


def score_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """How a cross-encoder's logit becomes its score: by the sigmoid, unless its authors leave it."""
    written = config.get("sentence_transformers")
    activation = written.get("activation_fn") if isinstance(written, dict) else None
    activation = activation or config.get("sbert_ce_default_activation_function") or ""
    return {"score": "identity" if str(activation).endswith("Identity") else "sigmoid"}


def read_json(path: Path, default: Any = None) -> Any:
    """The document in a file; an empty one where there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {} if default is None else default
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not JSON: {exc}") from exc


def _modules(folder: Path) -> list[str]:
    """The last parts of the modules' types, in order."""
    modules = read_json(folder / "modules.json", default=[])
    return [str(module.get("type", "")).rpartition(".")[2] for module in modules]
