"""`resilient-ai drill`: does it keep its promises here, on this machine, with these models?"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from resilient_ai.errors import ConfigurationError

__all__ = ["register"]

_QUICK_SECONDS = 1.5
_SECONDS = 2.0


class Verify(StrEnum):
    """How the service finds wrong values during the drill."""

    every = "every"
    sampled = "sampled"
    off = "off"


def register(app: typer.Typer) -> None:
    app.command("drill")(drill)


def drill(
    context: typer.Context,
    *,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault", help="Inject this fault; may be given again.  [default: all]", metavar="NAME"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Three faults, in less than 20 seconds.")] = False,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="How long each fault lasts.  [default: 2]", metavar="N")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="Callers at once.", metavar="N")] = 4,
    seed: Annotated[int, typer.Option("--seed", help="Decides what they ask for.", metavar="N")] = 0,
    verify: Annotated[
        Verify, typer.Option("--verify", help="How the service finds out wrong values.")
    ] = Verify.every,
    keep_recovery: Annotated[
        bool,
        typer.Option("--keep-recovery", help="Keep AI_RECOVERY_TIME_MS, which is at most 1 s otherwise."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The embedding model.  [default: AI_MODEL_NAME]", metavar="NAME"),
    ] = None,
    reranker: Annotated[
        str | None,
        typer.Option("--reranker", help="The reranking model.  [default: AI_RERANKER_NAME]", metavar="NAME"),
    ] = None,
    model_path: Annotated[
        Path | None,
        typer.Option(
            "--model-path", help="The folder of the models.  [default: AI_MODEL_PATH]", metavar="FOLDER"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Make the device fail, fault by fault, under traffic, and count what callers get.

    Exit code 0 when no answer was wrong and no call was lost, else 1. A simulated GPU is drilled
    unless AI_USE_GPU=always.
    """
    # Not above: the command line imports this module, and `--help` should not wait for an engine.
    from resilient_ai._adapters.cli import session as sessions  # noqa: PLC0415
    from resilient_ai._adapters.cli.console import emit, tell  # noqa: PLC0415
    from resilient_ai._adapters.drill.report import render  # noqa: PLC0415
    from resilient_ai._adapters.drill.run import QUICK, DrillOptions, run_drill  # noqa: PLC0415

    if quick and fault:
        raise ConfigurationError("--quick and --fault both choose the faults; give one of them")
    given = {"faults": tuple(fault or QUICK)} if fault or quick else {}
    options = DrillOptions(
        **given,
        seconds=seconds if seconds is not None else _QUICK_SECONDS if quick else _SECONDS,
        threads=threads,
        seed=seed,
        verify=verify.value,
        keep_recovery=keep_recovery,
    )
    session = sessions.of(context)
    settings = session.settings(model_name=model, reranker_name=reranker, model_path=model_path)
    found = run_drill(
        settings, options, make_service=session.make_service, tell=(lambda _: None) if quiet else tell
    )
    emit(f"{json.dumps(found.to_dict(), ensure_ascii=False)}\n" if as_json else render(found))
    if not found.passed:
        raise typer.Exit(1)
