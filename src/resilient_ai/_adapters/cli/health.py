"""`resilient-ai health`: load the models and say how they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from resilient_ai._adapters.cli import options as opt
from resilient_ai._adapters.cli import session as sessions
from resilient_ai._adapters.cli.console import emit_rows, emit_table, wants_json
from resilient_ai._adapters.cli.downloads import fetch_missing
from resilient_ai._adapters.cli.failures import FAILED

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command("health")(health)


def health(
    context: typer.Context,
    *,
    model: opt.Model = None,
    reranker: opt.Reranker = None,
    model_path: opt.ModelPath = None,
    timeout: opt.Timeout = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Load the models, fetching what is missing, and show the health of the service.

    A table on a terminal, one JSON object otherwise. Exit code 0 when healthy, 1 when degraded,
    unhealthy, or when a model cannot be loaded.
    """
    session = sessions.of(context)
    with session.service(model_name=model, reranker_name=reranker, model_path=model_path) as service:
        for name in dict.fromkeys((service.settings.model_name, service.settings.reranking_model)):
            fetch_missing(service.registry, name, quiet=quiet)
        service.load(timeout=timeout)
        found = service.health()
        if wants_json(asked=as_json):
            emit_rows([found.to_dict()])
        else:
            emit_table(["what", "value"], _flatten("", found.to_dict()))
    if found.status != "healthy":
        raise typer.Exit(FAILED)


def _flatten(name: str, value: Any) -> Iterator[tuple[str, object]]:
    """Nested values as rows of dotted names."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple) and value:
        parts = dict(enumerate(value)).items()
    else:
        yield name, "none" if value in {None, ()} else value
        return
    for key, part in parts:
        yield from _flatten(f"{name}.{key}" if name else str(key), part)
