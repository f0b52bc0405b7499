"""Tells from a model's small files which graph its weights make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from resilient_ai._models.graphs.checkpoint import read_object
from resilient_ai._models.graphs.families import FAMILIES
from resilient_ai._models.graphs.options import Head, Pooling
from resilient_ai._models.graphs.weights import CONFIG, M3_FILES
from resilient_ai.errors import ConfigurationError, ModelCorrupt

__all__ = ["Identity", "identify"]

_HEADS: Final[Mapping[str, Head | None]] = MappingProxyType(
    {
        "BertModel": "embedding",
        "BertForMaskedLM": "embedding",
        "BertForSequenceClassification": "score",
        "RobertaModel": "embedding",
        "RobertaForMaskedLM": "embedding",
        "RobertaForSequenceClassification": "score",
        "XLMRobertaModel": "embedding",
        "XLMRobertaForMaskedLM": "embedding",
        "XLMRobertaForSequenceClassification": "score",
        "MPNetModel": "embedding",
        "MPNetForMaskedLM": "embedding",
        "MPNetForSequenceClassification": "score",
        "NomicBertModel": "embedding",
        "NomicBertForMaskedLM": "embedding",
        "Qwen3Model": "embedding",
        # The same weights embed or score; which of the two they were trained for stands elsewhere.
        "Qwen3ForCausalLM": None,
        "Qwen3ForSequenceClassification": "score",
    }
)
"""What each architecture gives."""

_FLAGS: Final[Mapping[str, Pooling]] = MappingProxyType(
    {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_lasttoken": "last_token",
    }
)
_MODES: Final[Mapping[str, Pooling]] = MappingProxyType(
    {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last_token"}
)


@dataclass(frozen=True, slots=True)
class Identity:
    """A model as its own files describe it; the words are those that `ensure_graph` takes.

    `pooling` is None for scores, and where the files do not say. `normalize` is None where they
    do not say. `multi` says that BGE-M3's further heads lie beside the weights.
    """

    architecture: str
    family: str
    head: Head
    pooling: Pooling | None
    normalize: bool | None
    multi: bool


def identify(folder: Path) -> Identity:
    """Read `config.json` and, where they are there, `modules.json` and the pooling module's own.

    Raises:
        ConfigurationError: when no graph can be built for the model; the message has what can.
        ModelNotFound: when there is no `config.json`.
        ModelCorrupt: when a file is not what it should be.
    """
    config = read_object(folder / CONFIG)
    family = _family(folder, config.get("model_type"))
    architecture, head = _architecture(folder, config)
    modules = _modules(folder)
    if head is None:
        head = "embedding" if "Pooling" in modules else "score"
    if head == "score":
        _require_one_label(folder, architecture, config)
        return Identity(architecture, family, head, None, None, multi=False)
    pooling = _pooling(folder, modules.get("Pooling", "1_Pooling"))
    if pooling is None and FAMILIES[family].is_causal:
        pooling = "last_token"  # the only position that has seen the whole text
    normalize = "Normalize" in modules if modules else None
    multi = FAMILIES[family].has_multi and all((folder / name).is_file() for name in M3_FILES)
    return Identity(architecture, family, head, pooling, normalize, multi)


def _family(folder: Path, model_type: object) -> str:
    for name, family in FAMILIES.items():
        if model_type in family.model_types:
            return name
    known = ", ".join(each for family in FAMILIES.values() for each in family.model_types)
    msg = f"{folder / CONFIG}: no graph can be built for 'model_type' {model_type!r} (supported: {known})."
    raise ConfigurationError(f"{msg} Use an ONNX export of this model instead.")


def _architecture(folder: Path, config: Mapping[str, Any]) -> tuple[str, Head | None]:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in _HEADS:
        msg = f"{folder / CONFIG}: no graph can be built for 'architectures' {names!r}"
        msg = f"{msg} (supported: {', '.join(_HEADS)})."
        raise ConfigurationError(f"{msg} Use an ONNX export of this model instead.")
    return name, _HEADS[name]


def _require_one_label(folder: Path, architecture: str, config: Mapping[str, Any]) -> None:
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 1)
    if architecture.endswith("Classification") and count != 1:
        msg = f"{folder / CONFIG}: {architecture} with {count} labels is no reranker, which has one."
        raise ConfigurationError(f"{msg} Use another model.")


def _modules(folder: Path) -> dict[str, str]:
    """What sentence-transformers runs one after another: the last part of each type, and its folder."""
    file = folder / "modules.json"
    if not file.is_file():
        return {}
    try:
        entries = json.loads(file.read_bytes())
        return {entry["type"].rpartition(".")[2]: entry["path"] for entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise ModelCorrupt(f"{file} is no list of modules ({exc!r}). Fetch the file again.") from exc


def _pooling(folder: Path, path: str) -> Pooling | None:
    """What the pooling module says; None where there is none, or it says several things."""
    file = folder / path / CONFIG
    # A path of the model's own that leads out of its folder is as good as none.
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        return None
    fields = read_object(file)
    found = [pooling for flag, pooling in _FLAGS.items() if fields.get(flag) is True]
    mode = fields.get("pooling_mode")
    if isinstance(mode, str) and mode in _MODES:
        found.append(_MODES[mode])
    others = [name for name, on in fields.items() if name.startswith("pooling_mode_") and on is True]
    if others and not found:
        msg = f"{file}: '{others[0]}' is a pooling that is not supported (supported: {', '.join(_FLAGS)})."
        raise ConfigurationError(f"{msg} Use an ONNX export of this model instead.")
    return found[0] if len(found) == 1 else None
