"""Options that several commands have, each declared once. None always means: not given."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BatchSize",
    "Dimensions",
    "Errors",
    "Format",
    "InputFile",
    "InputKind",
    "Instruction",
    "Json",
    "JsonlField",
    "Model",
    "ModelPath",
    "OnBadText",
    "Quiet",
    "Reranker",
    "Timeout",
]


class OnBadText(StrEnum):
    """What to do about input that is not UTF-8."""

    STRICT = "strict"
    REPLACE = "replace"


class InputKind(StrEnum):
    """The prompt that the model puts around a text."""

    QUERY = "query"
    DOCUMENT = "document"


class Format(StrEnum):
    """How vectors are written."""

    NPY = "npy"
    JSONL = "jsonl"
    PARQUET = "parquet"


Model = Annotated[
    str | None, typer.Option("--model", help="The embedding model.  [default: AI_MODEL_NAME]", metavar="NAME")
]
Reranker = Annotated[
    str | None,
    typer.Option(
        "--reranker",
        help="The reranking model, or late-interaction.  [default: AI_RERANKER_NAME]",
        metavar="NAME",
    ),
]
ModelPath = Annotated[
    Path | None,
    typer.Option(
        "--model-path", help="The folder that models are kept in.  [default: AI_MODEL_PATH]", metavar="FOLDER"
    ),
]
InputFile = Annotated[
    str | None,
    typer.Option("--input", "-i", help="Read texts from this file, one a line; - is stdin.", metavar="FILE"),
]
JsonlField = Annotated[
    str | None,
    typer.Option("--jsonl-field", help="Read JSON lines; the text is this field of each.", metavar="NAME"),
]
Errors = Annotated[
    OnBadText, typer.Option("--errors", help="What is not UTF-8 is an error, or becomes U+FFFD.")
]
Instruction = Annotated[
    str | None,
    typer.Option("--instruction", help="The task, for models that read one.", metavar="TEXT"),
]
Dimensions = Annotated[
    int | None,
    typer.Option("--dimensions", help="Keep the first so many, and normalise again.", min=1),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Most texts in one batch.  [default: AI_BATCH_SIZE]", min=1),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        help="Seconds each call to the service may take: loading the model, a chunk of texts, a reranking.  "
        "[default: AI_TIMEOUT_MS]",
        metavar="SECONDS",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON lines, as always when stdout is not a terminal.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary on stderr.")]
