"""The program: its commands, its global options, its entry point."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from resilient_ai._adapters.cli import (
    config,
    demo,
    embed,
    health,
    models,
    own_models,
    quantize,
    rerank,
    serve,
    similar,
)
from resilient_ai._adapters.cli.console import StderrLog, emit
from resilient_ai._adapters.cli.failures import Program, Stopped
from resilient_ai._adapters.cli.session import Session
from resilient_ai._adapters.drill import command as drill
from resilient_ai._version import __version__

__all__ = ["app", "main"]

EPILOG = (
    "Exit codes: 0 done · 1 the service, a device or a model failed, or is not as it should be · "
    "2 wrong usage, input, settings or output file · 70 a bug of this program · "
    "130 Ctrl-C · 141 the reader of stdout went away · 143 SIGTERM."
)

app = typer.Typer(
    name="resilient-ai",
    cls=Program,
    help="Embeddings and rerankings that keep coming when the GPU dies.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (embed, rerank, similar, serve, health, config, drill, demo):
    module.register(app)
own_models.register(models.app)
quantize.register(models.app)
app.add_typer(models.app, name="models")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments (default: the process's own); returns the exit code."""
    _stop_on_signals()
    code: int = typer.main.get_command(app).main(
        args=None if argv is None else list(argv), prog_name="resilient-ai", standalone_mode=False
    )
    return code


def _show_version(asked: bool) -> None:  # noqa: FBT001 - typer's way to call it
    if asked:
        emit(f"resilient-ai {__version__}\n")
        raise typer.Exit


@app.callback()
def prepare(
    context: typer.Context,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="Read settings from this TOML file.", exists=True, dir_okay=False),
    ] = None,
    *,
    debug: Annotated[
        bool, typer.Option("--debug", help="Log everything, and show tracebacks of errors.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback does it all
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    context.obj = replace(context.obj or Session(), config_file=config_file, debug=debug)
    _log_to_stderr(context)


def _log_to_stderr(context: typer.Context) -> None:
    handler, logger = StderrLog(), logging.getLogger("resilient_ai")
    logger.addHandler(handler)
    context.call_on_close(lambda: logger.removeHandler(handler))


def _stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the program as Ctrl-C does, unless the parent had them ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise Stopped(number)
