"""Errors as answers: which status, which words, and what is kept back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, Literal

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from resilient_ai._telemetry.log import log
from resilient_ai.errors import (
    AllBackendsFailed,
    DeadlineExceeded,
    DeviceFailed,
    DeviceUnavailable,
    InvalidInput,
    ModelNotFound,
    Overloaded,
    ResilientAIError,
    ServiceClosed,
    Whose,
)

__all__ = ["EXCEPTION_HANDLERS", "JSON", "Problem", "describe"]

JSON = "application/json"

CLIENT_CLOSED_REQUEST = 499
"""No standard status fits an answer that nobody reads; proxies log this one."""

STATUS: dict[type[ResilientAIError], HTTPStatus] = {
    InvalidInput: HTTPStatus.BAD_REQUEST,
    ModelNotFound: HTTPStatus.NOT_FOUND,
    Overloaded: HTTPStatus.TOO_MANY_REQUESTS,
    DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    ServiceClosed: HTTPStatus.SERVICE_UNAVAILABLE,
    DeviceUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    DeviceFailed: HTTPStatus.SERVICE_UNAVAILABLE,
    AllBackendsFailed: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Errors that clients can do something about. All others are the operator's: their words go to the log."""

_REFUSALS = {404: "not_found", 405: "method_not_allowed", 408: "body_too_slow", 413: "body_too_large"}

_WITHHELD = "The server has a problem that its operator has to solve; its log says more."

ErrorType = Literal["invalid_request_error", "rate_limit_error", "timeout_error", "server_error"]


@dataclass(frozen=True, slots=True)
class Problem:
    """The body of an answer that is an error, `{"error": {...}}`, and its status."""

    status: int
    message: str
    code: str
    retryable: bool
    whose: Whose
    retry_after: float | None = None

    @property
    def type(self) -> ErrorType:
        """The kind of error in the words of OpenAI's clients."""
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            return "rate_limit_error"
        if self.status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.GATEWAY_TIMEOUT}:
            return "timeout_error"
        return "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        error = {"type": self.type, **asdict(self)}
        del error["status"]
        given = dict(headers or {})
        if self.retry_after is not None:
            # Whole seconds is all the standard header can say; some clients read the finer one first.
            given["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
            given["Retry-After-Ms"] = str(max(0, math.ceil(self.retry_after * 1000)))
        return Response(to_json({"error": error}), self.status, given, media_type=JSON)


def describe(error: ResilientAIError) -> Problem:
    """What a client is told of an error of the tree."""
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)
    return Problem(
        status=status or HTTPStatus.INTERNAL_SERVER_ERROR,
        message=str(error) if status else _WITHHELD,
        code=error.code,
        retryable=error.retryable,
        whose=error.whose,
        retry_after=_retry_after(error),
    )


def _retry_after(error: BaseException) -> float | None:
    """Seconds until the same call may succeed, where the error or one of its causes knows."""
    candidates = (error, *getattr(error, "causes", ()))
    known = [wait for wait in (getattr(each, "retry_after", None) for each in candidates) if wait is not None]
    return min((wait for wait in known if math.isfinite(wait)), default=None)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ResilientAIError)
    problem = describe(error)
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("a request failed", path=request.url.path, code=error.code, error=str(error))
    return problem.response()


async def _on_http_error(_: Request, error: Exception) -> Response:
    """What the server itself refuses: unknown paths and methods, bodies too large or too slow."""
    assert isinstance(error, HTTPException)
    return Problem(
        status=error.status_code,
        message=error.detail,
        code=_REFUSALS.get(error.status_code, "refused"),
        retryable=error.status_code == HTTPStatus.REQUEST_TIMEOUT,
        whose="caller",
    ).response(error.headers)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _on_bug(_: Request, __: Exception) -> Response:
    """Anything else. It is raised again after the answer, so that the server logs where it arose."""
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, _WITHHELD, "internal", retryable=False, whose="service"
    ).response()


EXCEPTION_HANDLERS: Mapping[Any, Any] = {
    ResilientAIError: _on_error,
    HTTPException: _on_http_error,
    ClientDisconnect: _on_disconnect,
    Exception: _on_bug,
}
