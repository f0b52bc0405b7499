"""`resilient-ai similar`: the lines most like a query."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resilient_ai._adapters.cli import options as opt
from resilient_ai._adapters.cli import session as sessions
from resilient_ai._adapters.cli.console import emit_rows, emit_table, wants_json
from resilient_ai._adapters.cli.inputs import open_texts

if TYPE_CHECKING:
    from resilient_ai._adapters.cli.nearest import Match
    from resilient_ai.service import EmbedOptions

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command("similar")(similar)


def similar(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="The text to compare with.")],
    *,
    input_file: opt.InputFile = None,
    jsonl_field: opt.JsonlField = None,
    errors: opt.Errors = opt.OnBadText.STRICT,
    vectors: Annotated[
        Path | None,
        typer.Option(
            "--vectors",
            help="Compare with the vectors of this .npy file (from `embed`); --input then gives the texts.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Show the best so many.", min=1)] = 10,
    model: opt.Model = None,
    model_path: opt.ModelPath = None,
    instruction: opt.Instruction = None,
    dimensions: opt.Dimensions = None,
    batch_size: opt.BatchSize = None,
    timeout: opt.Timeout = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Find the texts most like a query, by the cosine of their vectors.

    A table on a terminal, one JSON object a line otherwise. Works in bounded memory. --instruction
    is for the query alone; vectors must have been made with the same model and dimensions.
    """
    from resilient_ai._adapters.cli import nearest  # noqa: PLC0415 - numpy

    choices: EmbedOptions = {"dimensions": dimensions, "timeout": timeout}
    replace = errors is opt.OnBadText.REPLACE
    with ExitStack() as closing:
        matrix = nearest.open_vectors(vectors) if vectors is not None else None
        needs_texts = matrix is None or input_file is not None
        source = (
            open_texts((), input_file, field=jsonl_field, replace=replace, closing=closing)
            if needs_texts
            else None
        )
        service = closing.enter_context(
            sessions.of(context).service(model_name=model, model_path=model_path, batch_size=batch_size)
        )
        search = nearest.Search(service, choices, top_k, quiet=quiet)
        wanted = search.embed_query(query, instruction)
        if matrix is not None:
            matches = search.among_vectors(wanted, matrix, source)
        else:
            assert source is not None
            matches = search.among_texts(wanted, source)
    _show(matches, as_json=wants_json(asked=as_json))


def _show(matches: list[Match], *, as_json: bool) -> None:
    if as_json:
        rows = (
            (n, {"rank": n, "index": m.index, "cosine": m.cosine}, m.text) for n, m in enumerate(matches, 1)
        )
        emit_rows(row if text is None else {**row, "text": text} for _, row, text in rows)
        return
    emit_table(
        ["rank", "cosine", "index", "text"],
        ([n, f"{m.cosine:.4f}", m.index, m.text] for n, m in enumerate(matches, 1)),
        right=["rank", "cosine", "index"],
    )
