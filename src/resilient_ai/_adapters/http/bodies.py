"""Reads request bodies without letting them take the server's memory or its patience."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from starlette.exceptions import HTTPException
from starlette.requests import Request

from resilient_ai.errors import Overloaded

__all__ = ["BodyReader"]

_MEBIBYTE = 1 << 20

_HANG_UP = {"Connection": "close"}
"""For answers given before the body was read: what is left of it must not be taken for a request."""

_LINGER_S = 2.0
_LINGER_TIMES = 4
"""How long, and how many times the largest body, a refused body is still read before the answer."""


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
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._patience), aclosing(request.stream()) as stream:
                    await self._collect(request, stream, body)
            except TimeoutError as exc:
                raise HTTPException(
                    408, f"The request's body did not arrive within {self._patience:g} s.", _HANG_UP
                ) from exc
            yield body
        finally:
            self._let_go(body)

    async def _collect(self, request: Request, stream: AsyncIterator[bytes], body: bytearray) -> None:
        if self._announces_too_much(request):
            if "expect" not in request.headers:  # who asks first has sent nothing yet
                await self._discard(stream)
            raise self._too_large()
        async for chunk in stream:
            problem = self._problem_with(len(body), len(chunk))
            if problem is not None:
                self._let_go(body)
                await self._discard(stream)
                raise problem
            body += chunk
            self._held += len(chunk)

    async def _discard(self, stream: AsyncIterator[bytes]) -> None:
        """Take in some more of what is refused: a client that is cut off while it sends never reads why."""
        left = _LINGER_TIMES * self._largest
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                async for chunk in stream:
                    left -= len(chunk)
                    if left < 0:
                        return

    def _announces_too_much(self, request: Request) -> bool:
        announced = request.headers.get("content-length", "")
        digits = len(str(self._largest))
        # By their count first: thousands of digits need not, and cannot, become a number.
        return announced.isdecimal() and (len(announced) > digits or int(announced) > self._largest)

    def _problem_with(self, read: int, arrived: int) -> Exception | None:
        if read + arrived > self._largest:
            return self._too_large()
        if self._held + arrived > self._budget:
            return Overloaded("The requests under way fill the memory set aside for them; try again.", 1.0)
        return None

    def _let_go(self, body: bytearray) -> None:
        self._held -= len(body)
        body.clear()

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413,
            f"The request's body has more than {self._largest} bytes; send it in several requests.",
            _HANG_UP,
        )
