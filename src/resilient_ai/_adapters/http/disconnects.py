"""Nobody's call is computed for a client that has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

__all__ = ["run_while_connected"]

Answer = TypeVar("Answer")


async def run_while_connected(request: Request, call: Coroutine[Any, Any, Answer]) -> Answer:
    """Await a call for a client whose body has been read, and cancel it if the client goes away.

    Raises:
        ClientDisconnect: The client went away first.
    """
    work = asyncio.ensure_future(call)
    gone = asyncio.ensure_future(_disconnection(request.receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnection(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
