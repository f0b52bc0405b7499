"""Loads the models while the server answers already, however often that takes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from resilient_ai._telemetry.log import log
from resilient_ai.aio import AsyncAIService
from resilient_ai.errors import ResilientAIError, ServiceClosed

__all__ = ["keep_loading"]

FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0


async def keep_loading(
    service: AsyncAIService, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
) -> None:
    """Load the service's models; after a failure again, with longer and longer waits, until it is closed.

    What failed may pass: a network that is down, files that an operator is about to copy.
    """
    wait = FIRST_WAIT
    while True:
        try:
            # No limit: the default one is for calls, and loading may mean a long download.
            await service.load(timeout=math.inf)
        except ServiceClosed:
            return
        except ResilientAIError as exc:
            log.error("a model could not be loaded", retry_in_s=wait, code=exc.code, error=str(exc))
        else:
            return
        await sleep(wait)
        wait = min(LONGEST_WAIT, 2 * wait)
