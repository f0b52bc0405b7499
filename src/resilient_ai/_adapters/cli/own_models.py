"""`resilient-ai models add | convert`: models of one's own, and known ones in another form."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resilient_ai._adapters.cli import options as opt
from resilient_ai._adapters.cli import session as sessions
from resilient_ai._adapters.cli.console import emit_rows, emit_table, tell, wants_json
from resilient_ai._adapters.cli.downloads import bytes_text, fetch
from resilient_ai.errors import ConfigurationError

if TYPE_CHECKING:
    from resilient_ai._adapters.cli.session import Session
    from resilient_ai._models.cards import ModelCard
    from resilient_ai._models.registry import ModelRegistry

__all__ = ["register"]

_TEXTS = ("The sun is warm.", "Rain is wet.")
"""What a new model is tried with."""


class Precision(StrEnum):
    """The numbers of a graph that is built."""

    FP32 = "fp32"
    FP16 = "fp16"


Folder = Annotated[Path, typer.Argument(help="A folder with a model.", exists=True, file_okay=False)]
Source = Annotated[str, typer.Argument(help="A folder with weights, or a model by name.", metavar="MODEL")]


def register(app: typer.Typer) -> None:
    app.command("add")(add)
    app.command("convert")(convert)


def add(
    context: typer.Context,
    folder: Folder,
    *,
    name: Annotated[
        str | None, typer.Option("--name", help="What to call it.  [default: its card's or folder's name]")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Load it on the CPU and let it answer, first.")
    ] = True,
    model_path: opt.ModelPath = None,
    as_json: opt.Json = False,
) -> None:
    """Make a model of your own known by its name; it is used where it is.

    The folder has model.onnx or model.safetensors, tokenizer.json and, where those leave something
    open, a card.toml of a few lines; what is missing there is told. `models remove` undoes it.
    """
    session = sessions.of(context)
    registry = session.registry(model_path)
    card = registry.add_folder(folder, name=name)
    if check:
        try:
            _try_out(session, card, model_path)
        except BaseException:
            registry.remove(card.name)
            raise
    _show(_told(card, registry), as_json=as_json)
    setting = "AI_MODEL_NAME" if card.kind == "embedding" else "AI_RERANKER_NAME"
    tell(f"use it with {setting}={card.name}")


def convert(
    context: typer.Context,
    source: Source,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to make.  [default: in the model folder]"),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="fp16 is for GPUs.")] = Precision.FP32,
    card_name: Annotated[
        str | None, typer.Option("--card-name", help="The new model's name.  [default: NAME-PRECISION]")
    ] = None,
    model_path: opt.ModelPath = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Build the ONNX graph of a model's weights into a folder that needs nothing else.

    The folder has model.onnx, tokenizer.json and card.toml; in the model folder it is known by its
    name at once. Shows path, size, seconds, and the peak of this program's memory.
    """
    from resilient_ai._models.converting import convert as build  # noqa: PLC0415 - brings the graph builder

    registry = sessions.of(context).registry(model_path)
    folder, card = _weights_of(source, registry, quiet=quiet)
    name = card_name or f"{card.name}-{precision}"
    made = build(
        folder,
        _renamed(card, name),
        output if output is not None else registry.store.root / name,
        precision=precision,
    )
    _show(
        {
            "name": name,
            "family": card.family,
            "kind": card.kind,
            "precision": str(precision),
            "graph": str(made.graph),
            "bytes": made.nbytes,
            "seconds": round(made.seconds, 1),
            "peak_memory_bytes": _peak_memory(),
        },
        as_json=as_json,
    )


def _weights_of(source: str, registry: ModelRegistry[Any], *, quiet: bool) -> tuple[Path, ModelCard]:
    """The folder with the weights, and the card of what is in there."""
    from resilient_ai._models.folders import card_from_folder  # noqa: PLC0415 - as above

    folder = Path(source)
    if folder.is_dir():
        card = card_from_folder(folder)
    else:
        folder = fetch(registry, registry.get(source).name, body="weights", quiet=quiet).folder
        card = registry.get(source)
    if "weights" not in card.bodies:
        raise ConfigurationError(
            f"{folder} has no weights that a graph can be built of. Its graph can be used as it is: "
            f"resilient-ai models add {folder}"
        )
    return folder, card


def _renamed(card: ModelCard, name: str) -> ModelCard:
    return replace(card, name=name, aliases=())


def _try_out(session: Session, card: ModelCard, model_path: Path | None) -> None:
    """Let the model answer once, for what only a run can tell."""
    with session.service(model_path=model_path, use_gpu="never") as service:
        if card.kind == "embedding":
            service.embed(_TEXTS, model=card.name)
        else:
            service.rerank(_TEXTS[0], _TEXTS, model=card.name)


def _told(card: ModelCard, registry: ModelRegistry[Any]) -> dict[str, Any]:
    fields = ("name", "kind", "family", "dimension", "pooling", "normalize", "score", "max_tokens")
    told = {field: getattr(card, field) for field in fields if getattr(card, field) is not None}
    return told | {"path": str(registry.path(card.name))}


def _show(row: dict[str, Any], *, as_json: bool) -> None:
    if wants_json(asked=as_json):
        emit_rows([row])
        return
    readable = {key: bytes_text(value) if key.endswith("bytes") else value for key, value in row.items()}
    emit_table(["what", "value"], readable.items())


def _peak_memory() -> int:
    """The most that this program has ever held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
