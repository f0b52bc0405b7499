"""The process that serves: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from resilient_ai._adapters.http.app import build_app
from resilient_ai._adapters.http.offers import embedding_offer, reranking_offer
from resilient_ai.aio import AsyncAIService
from resilient_ai.errors import ConfigurationError
from resilient_ai.settings import AISettings

__all__ = ["run"]

GRACE_S = 5
"""Seconds that requests under way get once the server was asked to end."""

_REST_S = 3
"""Seconds for what is answered with 503 after that."""

_LAST_PORT = 65_535
_BACKLOG = 2048


class _Server(uvicorn.Server):
    """Ends when it is asked to, every request answered."""

    def __init__(self, service: AsyncAIService) -> None:
        super().__init__(
            uvicorn.Config(
                build_app(service),
                lifespan="on",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=GRACE_S + _REST_S,
            )
        )
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the server, and no more: uvicorn's own would raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests under way finish for the grace, then have the service answer what is left."""
        ending = asyncio.create_task(self._close_later())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _close_later(self) -> None:
        await asyncio.sleep(GRACE_S)
        await self._service.close(timeout=0.0)


def run(settings: AISettings, host: str, port: int, *, on_listening: Callable[[str], None] | None) -> None:
    """Do what `resilient_ai._adapters.http.serve` promises."""
    service = AsyncAIService(settings)
    asyncio.run(_serve(service, host, port, on_listening))


async def _serve(
    service: AsyncAIService, host: str, port: int, on_listening: Callable[[str], None] | None
) -> None:
    async with service:
        # A wrong name would otherwise show only with the first request.
        embedding_offer(service)
        reranking_offer(service)
        with _listen(host, port) as listener:
            if on_listening is not None:
                on_listening(_url(listener))
            await _Server(service).serve(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the first address of `host` that can be had, IPv4 before IPv6."""
    if not 0 <= port <= _LAST_PORT:
        raise _unusable(host, port, f"a port is a number from 0 to {_LAST_PORT}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise _unusable(host, port, exc) from exc
    reason: OSError | None = None
    for family, _, _, _, address in sorted(found, key=lambda each: each[0] != socket.AF_INET):
        try:
            return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except OSError as exc:
            reason = reason or exc
    raise _unusable(host, port, reason) from reason


def _unusable(host: str, port: int, reason: object) -> ConfigurationError:
    return ConfigurationError(
        f"{host}:{port} cannot be listened on: {reason}; choose another --host or --port"
    )


def _url(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"
