"""`resilient-ai models quantize`: an int8 graph of a model, and what it costs in agreement."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resilient_ai._adapters.cli import options as opt
from resilient_ai._adapters.cli import session as sessions
from resilient_ai._adapters.cli.console import emit, emit_rows, tell
from resilient_ai._adapters.cli.downloads import fetch
from resilient_ai._adapters.cli.inputs import open_texts

if TYPE_CHECKING:
    from resilient_ai._models.installed import InstalledModel
    from resilient_ai._models.registry import ModelRegistry

__all__ = ["register"]


class Precision(StrEnum):
    """The numbers that a graph's matrices become."""

    INT8 = "int8"


class Recipe(StrEnum):
    """What is done about values that integers do not hold well."""

    ROWWISE = "rowwise"
    MIXED = "mixed"
    PRECISE = "precise"


def register(app: typer.Typer) -> None:
    app.command("quantize")(quantize)


def quantize(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A model by name, or its folder.", metavar="MODEL")],
    *,
    precision: Annotated[Precision, typer.Option(help="The numbers it is to compute with.")] = Precision.INT8,
    recipe: Annotated[
        Recipe, typer.Option(help="precise is nearer to fp32 and slower; rowwise is the simplest.")
    ] = Recipe.MIXED,
    texts: Annotated[
        str | None,
        typer.Option("--texts", help="Compare on the lines of this file, your own texts.", metavar="FILE"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep the graph even if its answers do not agree.")
    ] = False,
    model_path: opt.ModelPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    quiet: opt.Quiet = False,
) -> None:
    """Make an int8 graph of a model for the CPU, compare it with fp32, and keep it if they agree.

    It is used with AI_PRECISION=int8. Without --texts the comparison is on made-up texts, which say less
    than your own would.
    """
    from resilient_ai._inference.cores import usable_cores  # noqa: PLC0415 - these bring the inference engine
    from resilient_ai._serving.quantizing import quantize_model, sample_texts  # noqa: PLC0415

    session = sessions.of(context)
    settings = session.settings(model_path=model_path)
    made = quantize_model(
        _installed(source, session.registry(model_path), quiet=quiet),
        sample_texts() if texts is None else _read(texts),
        recipe=str(recipe),
        threads=min(settings.parallel_workers, usable_cores()),
        max_tokens=settings.max_length,
        token_outputs=settings.late_interaction,
        force=force,
    )
    if as_json:
        emit_rows([{**made.report.to_dict(), "graph": str(made.graph), "recipe": made.recipe}])
    else:
        emit(f"{made.report}\n  graph       {made.graph}\n")
    tell(f"use it with AI_PRECISION={precision}")


def _installed(source: str, registry: ModelRegistry[Any], *, quiet: bool) -> InstalledModel:
    if Path(source).is_dir():
        card = registry.register_folder(Path(source))
        return registry.pull(card.name)
    return fetch(registry, source, body=None, quiet=quiet)


def _read(path: str) -> list[str]:
    """The lines of a file that are not blank."""
    with ExitStack() as closing:
        return [
            text for text in open_texts((), path, field=None, replace=False, closing=closing) if text.strip()
        ]
