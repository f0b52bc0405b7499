"""`resilient-ai rerank`: which documents answer a query best."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from resilient_ai._adapters.cli import options as opt
from resilient_ai._adapters.cli import session as sessions
from resilient_ai._adapters.cli.console import emit_rows, emit_table, wants_json
from resilient_ai._adapters.cli.downloads import fetch_missing
from resilient_ai._adapters.cli.inputs import open_texts

if TYPE_CHECKING:
    from resilient_ai.values import Ranking

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command("rerank")(rerank)


def rerank(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="The question.")],
    documents: Annotated[
        list[str] | None, typer.Argument(help="Documents; without any, --input or stdin.")
    ] = None,
    *,
    input_file: opt.InputFile = None,
    jsonl_field: opt.JsonlField = None,
    errors: opt.Errors = opt.OnBadText.STRICT,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="Show the best so many; all by default.", min=1)
    ] = None,
    reranker: opt.Reranker = None,
    model: opt.Model = None,
    model_path: opt.ModelPath = None,
    instruction: opt.Instruction = None,
    raw_scores: Annotated[bool, typer.Option("--raw-scores", help="The model's logits as they are.")] = False,
    batch_size: opt.BatchSize = None,
    timeout: opt.Timeout = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Order documents by how well they answer a query, the best first.

    A table on a terminal, one JSON object a line otherwise. All documents are held in memory.
    """
    replace = errors is opt.OnBadText.REPLACE
    with ExitStack() as closing:
        source = open_texts(documents or (), input_file, field=jsonl_field, replace=replace, closing=closing)
        service = closing.enter_context(
            sessions.of(context).service(
                reranker_name=reranker, model_name=model, model_path=model_path, batch_size=batch_size
            )
        )
        fetch_missing(service.registry, service.settings.reranking_model, quiet=quiet)
        ranking = service.rerank(
            query,
            list(source),
            top_k=top_k,
            instruction=instruction,
            raw_scores=raw_scores,
            timeout=timeout,
        )
    _show(ranking, as_json=wants_json(asked=as_json))


def _show(ranking: Ranking, *, as_json: bool) -> None:
    if not as_json:
        rows = ([n, f"{d.score:.4f}", d.index, d.document] for n, d in enumerate(ranking, 1))
        emit_table(["rank", "score", "index", "document"], rows, right=["rank", "score", "index"])
        return
    emit_rows(
        {
            "rank": rank,
            "index": ranked.index,
            "score": ranked.score,
            "document": ranked.document,
            "tokens": int(ranking.token_counts[ranked.index]),
            "truncated": bool(ranking.truncated[ranked.index]),
            "device": ranking.served_by[ranked.index],
        }
        for rank, ranked in enumerate(ranking, 1)
    )
