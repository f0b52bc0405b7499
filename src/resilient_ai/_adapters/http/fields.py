"""What a client may write into a request, read strictly and reported in its own terms."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from resilient_ai.errors import InvalidInput
from resilient_ai.values import Priority

__all__ = ["CallFields", "read_fields"]

Fields = TypeVar("Fields", bound="CallFields")


class CallFields(BaseModel):
    """The fields that every call has. Null is the same as leaving a field out.

    Fields that nobody knows are ignored: clients of other servers send some of their own.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    model: Annotated[str, Field(max_length=256)] | None = None
    instruction: str | None = None
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    priority: Priority | None = None


def read_fields(kind: type[Fields], body: bytes | bytearray) -> Fields:
    """Read a JSON body.

    Raises:
        InvalidInput: It is no JSON object, or a field of it is wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as exc:
        first, *others = exc.errors(include_url=False, include_context=False, include_input=False)
        more = f" ({len(others)} more)" if others else ""
        raise InvalidInput(f"{_explain(first)}{more}") from exc


def _explain(error: ErrorDetails) -> str:
    if error["type"] == "json_invalid":
        return f"The request's body is not JSON. {error['msg']}"
    where = ""
    for part in error["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else part
    return f"{where or 'The request'}: {error['msg']}"
