"""`resilient-ai embed`: texts in, vectors out, at any size."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resilient_ai._adapters.cli import options as opt
from resilient_ai._adapters.cli import session as sessions
from resilient_ai._adapters.cli.inputs import open_texts

if TYPE_CHECKING:
    from resilient_ai.service import EmbedOptions

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command("embed")(embed)


def embed(
    context: typer.Context,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, --input or stdin.")] = None,
    *,
    input_file: opt.InputFile = None,
    jsonl_field: opt.JsonlField = None,
    errors: opt.Errors = opt.OnBadText.STRICT,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write this .npy, .jsonl or .parquet, complete or not at all."),
    ] = None,
    output_format: Annotated[
        opt.Format | None, typer.Option("--format", help="The format, whatever the output is called.")
    ] = None,
    with_text: Annotated[bool, typer.Option("--with-text", help="Put each text beside its vector.")] = False,
    model: opt.Model = None,
    model_path: opt.ModelPath = None,
    input_type: Annotated[
        opt.InputKind, typer.Option("--input-type", help="The model's prompt to use.")
    ] = opt.InputKind.DOCUMENT,
    instruction: opt.Instruction = None,
    dimensions: opt.Dimensions = None,
    no_normalize: Annotated[
        bool, typer.Option("--no-normalize", help="Leave vectors at their length.  [default: AI_NORMALIZE]")
    ] = False,
    batch_size: opt.BatchSize = None,
    timeout: opt.Timeout = None,
    quiet: opt.Quiet = False,
) -> None:
    """Turn texts into vectors.

    Without --output, one JSON object a line goes to stdout. An empty line is a text too: vector n
    belongs to line n.
    """
    from resilient_ai._adapters.cli.destination import destination  # noqa: PLC0415 - numpy
    from resilient_ai._adapters.cli.embedding import Run  # noqa: PLC0415 - numpy

    choices: EmbedOptions = {
        "input_type": input_type.value,
        "instruction": instruction,
        "dimensions": dimensions,
        "normalize": False if no_normalize else None,
        "timeout": timeout,
    }
    with ExitStack() as closing:
        source = open_texts(
            texts or (),
            input_file,
            field=jsonl_field,
            replace=errors is opt.OnBadText.REPLACE,
            closing=closing,
        )
        target = destination(output, output_format, with_text=with_text)
        service = closing.enter_context(
            sessions.of(context).service(model_name=model, model_path=model_path, batch_size=batch_size)
        )
        Run(service, choices, quiet=quiet).write(source, target)
