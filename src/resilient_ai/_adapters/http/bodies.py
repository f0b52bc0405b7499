"""Reads request bodies without letting them take the server's memory or its patience."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request

from resilient_ai.errors import Overloaded

__all__ = ["BodyReader"]

_MEBIBYTE = 1 << 20

_HANG_UP = {"Connection": "close"}
"""For answers given before the body was read: what is left of it must not be taken for a request."""


class BodyReader:
    """Reads bodies of at most `largest` bytes, at most `budget` bytes of all requests together.

    A body counts from its first byte until its request is answered, and has `patience` seconds to
    arrive. For one event loop.
    """

    def __init__(
        self, *, largest: int = 16 * _MEBIBYTE, budget: int = 256 * _MEBIBYTE, patience: float = 30.0
    ) -> None:
        self._largest = largest
        self._budget = budget
        self._patience = patience
        self._held = 0

    def __repr__(self) -> str:
        return f"<BodyReader {self._held} of {self._budget} bytes held>"

    @property
    def held(self) -> int:
        """Bytes of bodies in memory now."""
        return self._held

    @asynccontextmanager
    async def reading(self, request: Request) -> AsyncIterator[bytearray]:
        """Read a request's body, and hold its bytes for as long as the block runs.

        Raises:
            HTTPException: 413 when it is too large, 408 when it comes too slowly.
            Overloaded: The bodies of other requests leave no room for it.
            ClientDisconnect: The client went away before it was sent.
        """
        self._refuse_announced(request)
        body = bytearray()
        try:
            await self._collect(request, body)
            yield body
        finally:
            self._held -= len(body)

    async def _collect(self, request: Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(self._patience), aclosing(request.stream()) as stream:
                async for chunk in stream:
                    self._check_room(len(body), len(chunk))
                    body += chunk
                    self._held += len(chunk)
        except TimeoutError as exc:
            raise HTTPException(
                408, f"The request's body did not arrive within {self._patience:g} s.", _HANG_UP
            ) from exc

    def _refuse_announced(self, request: Request) -> None:
        """Refuse by its announced length what need not be read for it."""
        announced = request.headers.get("content-length", "")
        digits = len(str(self._largest))
        # By their count first: thousands of digits need not, and cannot, become a number.
        if announced.isdecimal() and (len(announced) > digits or int(announced) > self._largest):
            raise self._too_large()

    def _check_room(self, read: int, arrived: int) -> None:
        if read + arrived > self._largest:
            raise self._too_large()
        if self._held + arrived > self._budget:
            raise Overloaded("The requests under way fill the memory set aside for them; try again.", 1.0)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413,
            f"The request's body has more than {self._largest} bytes; send it in several requests.",
            _HANG_UP,
        )
