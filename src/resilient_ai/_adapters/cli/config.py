"""`resilient-ai config`: every setting, its value, and where that came from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from resilient_ai._adapters.cli import session as sessions
from resilient_ai._adapters.cli.console import emit, emit_rows, emit_table

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command("config")(config)


def config(
    context: typer.Context,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines, one a setting.")] = False,
    as_toml: Annotated[
        bool, typer.Option("--toml", help="A TOML file of all settings, commented out at their defaults.")
    ] = False,
) -> None:
    """Show every setting with its value and origin, secrets masked.

    AI_ variables that are no settings are listed too, with the setting that was perhaps meant.
    """
    if as_toml:
        from resilient_ai.settings.reference import as_toml as reference  # noqa: PLC0415 - brings pydantic

        emit(reference())
        return
    reports = sessions.of(context).settings().report()
    if as_json:
        emit_rows(asdict(report) for report in reports)
        return
    emit_table(
        ["setting", "value", "origin", ""],
        (
            [r.variable, "unset" if r.value is None else r.value, r.origin, "" if r.known else r.description]
            for r in reports
        ),
    )
