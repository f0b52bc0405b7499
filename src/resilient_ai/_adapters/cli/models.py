"""`resilient-ai models`: what there is, what is at hand, and bringing it here."""

from __future__ import annotations

import sys
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resilient_ai._adapters.cli import options as opt
from resilient_ai._adapters.cli import session as sessions
from resilient_ai._adapters.cli.console import emit, emit_rows, emit_table, tell
from resilient_ai._adapters.cli.downloads import bytes_text, fetch
from resilient_ai._adapters.cli.failures import FAILED

if TYPE_CHECKING:
    from resilient_ai._models.cards import Body, ModelCard
    from resilient_ai._models.installed import VerifyReport

__all__ = ["app"]

app = typer.Typer(help="The models: list, fetch, verify, remove.", no_args_is_help=True)


class Part(StrEnum):
    """The form a model is fetched in."""

    WEIGHTS = "weights"
    GRAPH = "graph"


Names = Annotated[list[str], typer.Argument(help="Models, by name or alias.", metavar="NAME...")]
Name = Annotated[str, typer.Argument(help="A model, by name or alias.", metavar="NAME")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines.")]


@app.command("list")
def list_models(context: typer.Context, *, model_path: opt.ModelPath = None, as_json: AsJson = False) -> None:
    """List the models, the best first; `available` says that the files are on this machine."""
    registry = sessions.of(context).registry(model_path)
    rows = [_summary(card, available=registry.is_available(card.name)) for card in registry.list()]
    if as_json:
        emit_rows(rows)
        return
    head = ["name", "kind", "dimension", "max_tokens", "available", "licence", "sources"]
    emit_table(
        head, ([_cell(row[title]) for title in head] for row in rows), right=["dimension", "max_tokens"]
    )


@app.command()
def pull(
    context: typer.Context,
    names: Names,
    *,
    body: Annotated[
        Part | None, typer.Option("--body", help="Fetch this form of the model; by default the better one.")
    ] = None,
    model_path: opt.ModelPath = None,
    quiet: opt.Quiet = False,
) -> None:
    """Fetch models, or repair damaged ones; prints the folder of each.

    What is on this machine already, in whatever place, is not fetched again.
    """
    registry = sessions.of(context).registry(model_path)
    wanted: Body | None = None if body is None else body.value
    for name in names:
        emit(f"{fetch(registry, name, body=wanted, quiet=quiet).folder}\n")


@app.command()
def verify(
    context: typer.Context, names: Names, *, model_path: opt.ModelPath = None, as_json: AsJson = False
) -> None:
    """Read every file of models again; exit code 1 unless all are ok.

    Prints `ok`, `missing` or `altered` and the path of each file.
    """
    registry = sessions.of(context).registry(model_path)
    reports = [registry.verify(name) for name in names]
    for report in reports:
        _show_report(report, as_json=as_json)
    if not all(report.ok for report in reports):
        raise typer.Exit(FAILED)


@app.command()
def path(context: typer.Context, name: Name, *, model_path: opt.ModelPath = None) -> None:
    """Print the folder of a model, or the one it would be fetched to."""
    registry = sessions.of(context).registry(model_path)
    emit(f"{registry.path(name)}\n")
    if not registry.is_available(name):
        tell(f"{name} is not there yet; fetch it with: resilient-ai models pull {name}")


@app.command()
def remove(
    context: typer.Context,
    names: Names,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    model_path: opt.ModelPath = None,
) -> None:
    """Delete the files of models from the model folder.

    Folders and Python packages that a model was found in are left alone.
    """
    registry = sessions.of(context).registry(model_path)
    cards = [registry.get(name) for name in names]  # before anything is deleted
    for card in cards:
        if not yes and not _confirmed(f"Delete {card.name} from {registry.store.root}?"):
            tell(f"{card.name}: kept")
            continue
        freed = registry.remove(card.name)
        tell(f"{card.name}: {bytes_text(freed)} freed")
        if registry.is_available(card.name):
            tell(f"{card.name}: still available from {registry.path(card.name)}, which is not ours to delete")


@app.command()
def show(
    context: typer.Context, name: Name, *, model_path: opt.ModelPath = None, as_json: AsJson = False
) -> None:
    """Show all that is known of a model."""
    registry = sessions.of(context).registry(model_path)
    card = registry.get(name)
    values = {
        **asdict(card),
        "available": registry.is_available(name),
        "path": str(registry.path(name)),
    }
    if as_json:
        emit_rows([values])
        return
    files = [f"{file.path} ({_size(file.size)})" for file in card.files]
    shown = {**values, "files": files, "sources": _sources(card)}
    emit_table(["what", "value"], ([key, _cell(value)] for key, value in shown.items()))


def _summary(card: ModelCard, *, available: bool) -> dict[str, Any]:
    return {
        "name": card.name,
        "kind": card.kind,
        "dimension": card.dimension,
        "max_tokens": card.max_tokens,
        "available": available,
        "licence": card.licence,
        "sources": _sources(card),
    }


def _sources(card: ModelCard) -> list[str]:
    return [f"{source.kind}:{source.location}" for source in card.sources]


def _size(size: int | None) -> str:
    return "size not known before the download" if size is None else bytes_text(size)


def _cell(value: object) -> str:
    """A value as a person reads it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _show_report(report: VerifyReport, *, as_json: bool) -> None:
    if not as_json:
        emit("".join(f"{file.verdict:<8} {file.path}\n" for file in report.files))
        return
    emit_rows(
        {
            "model": report.model,
            "file": file.file.path,
            "path": str(file.path),
            "verdict": file.verdict,
            "expected": file.expected,
            "found": file.found,
        }
        for file in report.files
    )


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody can be asked, since stdin is no terminal; pass --yes to delete")
    return typer.confirm(question, err=True)
