"""The service over HTTP, in the dialects that embedding and reranking clients speak already.

Needs the extra `server`; nothing of it is imported before a server is made.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from resilient_ai.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from resilient_ai.aio import AsyncAIService
    from resilient_ai.settings import AISettings

__all__ = ["build_app", "serve"]

NEEDED = ("starlette", "uvicorn")


def serve(
    settings: AISettings,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    on_listening: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; blocks, and returns once what was under way has ended.

    Clients are not asked who they are: on another address than the loopback one, something in
    front has to. `port` 0 takes a free one; `on_listening` is told the URL once clients can connect.

    Raises:
        ConfigurationError: The extra `server` is missing, or the address cannot be listened on.
        ModelNotFound: The settings name a model that nobody knows.
    """
    require_extra()
    from resilient_ai._adapters.http.server import run  # noqa: PLC0415 - the extra may be missing

    run(settings, host, port, on_listening=on_listening)


def build_app(service: AsyncAIService) -> Starlette:
    """The ASGI application over a service, for a server of one's own; the service stays the caller's.

    Raises:
        ConfigurationError: The extra `server` is missing.
    """
    require_extra()
    from resilient_ai._adapters.http import app  # noqa: PLC0415 - the extra may be missing

    return app.build_app(service)


def require_extra() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the HTTP server needs {' and '.join(missing)}, which this installation lacks; "
            'get it with: pip install "resilient-ai[server]"'
        )
