"""`resilient-ai serve`: the service over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from resilient_ai._adapters.cli.console import tell
from resilient_ai._adapters.cli.session import of

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)


def serve(
    context: typer.Context,
    *,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The port; 0 takes a free one.")
    ] = 8080,
) -> None:
    """Serve embeddings and rerankings over HTTP, in the shapes of OpenAI and Cohere.

    Needs the extra `server`. Ctrl-C or SIGTERM lets requests under way finish and ends it.
    """
    from resilient_ai._adapters import http  # noqa: PLC0415 - brings the server only when it is asked for

    settings = of(context).settings()
    http.serve(settings, host, port, on_listening=lambda url: tell(f"listening on {url} (Ctrl-C ends it)"))
