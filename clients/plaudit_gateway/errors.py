"""What goes wrong, in the shape and with the status codes of OpenAI's API.

    {"error": {"message": "…", "type": "invalid_request_error", "param": "temperature", "code": "invalid_value"}}

`param` names a field of the HTTP request; what the servers call it is translated.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from plaudit_client import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    PlauditError,
    RequestTooLarge,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

log = logging.getLogger(__name__)

_INVALID = "invalid_request_error"
_SERVER = "server_error"


class Problem(BaseModel):
    """What is wrong."""

    model_config = ConfigDict(extra="forbid")

    message: str
    """A sentence for a person, which says what would be right."""
    type: str
    """`invalid_request_error`, `rate_limit_error` or `server_error`."""
    param: str | None
    """The field of the request that is wrong."""
    code: str | None
    """What to tell errors apart by."""


class ErrorBody(BaseModel):
    """Every answer that is not 2xx."""

    model_config = ConfigDict(extra="forbid")

    error: Problem = Field()


class Wrong(Exception):
    """Raised anywhere below a route; becomes the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = Problem(message=message, type=_type(status), param=param, code=code)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """As JSON."""
        return {"error": self.problem.model_dump()}

    def response(self) -> JSONResponse:
        """As an HTTP answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def from_client(error: PlauditError, names: Mapping[str, str]) -> Wrong:
    """What the SDK raised. `names`: what the HTTP request calls the servers' fields, by theirs."""
    match error:
        case InvalidRequest():
            field, message = error.violations[0]
            if field == "api_key":
                return Wrong(401, f"the API key {message}", code="invalid_api_key")
            param = _named(field, names)
            message = message.removeprefix(f"{field}: ")
            return Wrong(400, f"{param}: {message}" if param else message, code="invalid_value", param=param)
        case Unauthenticated():
            headers = {"WWW-Authenticate": "Bearer"}
            hint = ": send a key of this deployment as `Authorization: Bearer KEY`"
            return Wrong(401, error.message + hint, code="invalid_api_key", headers=headers)
        case PermissionDenied():
            return Wrong(403, error.message, code="permission_denied")
        case NotFound():
            return Wrong(404, told(error), code="not_found")
        case FailedPrecondition():
            return Wrong(400, error.message, code="failed_precondition")
        case RequestTooLarge():
            return Wrong(413, f"the request is too large for the server: {error.message}", code="too_large")
        case ResourceExhausted():
            return Wrong(429, error.message, code="rate_limit_exceeded", headers=_retry_after(error))
        case Unavailable():
            return Wrong(503, told(error), code="unavailable", headers=_retry_after(error))
        case DeadlineExceeded():
            return Wrong(504, error.message, code="timeout")
    return Wrong(500, error.message, code=error.code.lower())


_LOG_EVERY = 10.0  # seconds; anybody can ask as often as they like
_logged = -_LOG_EVERY


def told(error: PlauditError) -> str:
    """Its sentence for strangers: without the servers' addresses, which go to the log."""
    global _logged  # noqa: PLW0603
    if not error.address:
        return error.message
    if (now := time.monotonic()) >= _logged + _LOG_EVERY:
        _logged = now
        log.warning("%s", error.message)
    return "no server answers" if isinstance(error, Unavailable) else "the server does not have this service"


def _named(field: str, names: Mapping[str, str]) -> str | None:
    """`sampling.stop[2]` → `stop[2]`."""
    path, bracket, rest = field.partition("[")
    return names.get(path, path) + bracket + rest or None


def _retry_after(error: ResourceExhausted | Unavailable) -> dict[str, str]:
    seconds = error.retry_after
    if seconds is None:
        return {}
    # Whole seconds are all that HTTP knows; OpenAI's clients look for the other one first.
    return {"Retry-After": str(max(1, math.ceil(seconds))), "Retry-After-Ms": str(math.ceil(seconds * 1000))}


def _type(status: int) -> str:
    return "rate_limit_error" if status == 429 else _SERVER if status >= 500 else _INVALID


async def on_wrong(request: Request, error: Exception) -> JSONResponse:
    """For FastAPI: Wrong."""
    assert isinstance(error, Wrong)
    return error.response()


_CODES = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large"}


async def on_http(request: Request, error: Exception) -> JSONResponse:
    """For FastAPI: what Starlette and FastAPI refuse themselves."""
    assert isinstance(error, HTTPException) or hasattr(error, "status_code")
    status, detail = error.status_code, str(getattr(error, "detail", ""))
    if status == 404:
        detail = "there is nothing at this address; /v1/openapi.json says what there is"
    elif status == 405:
        detail = f"{request.method} cannot be done here"
    elif status == 400:  # FastAPI's, of a body that cannot be read
        detail = "the body is not JSON in UTF-8"
    headers = getattr(error, "headers", None)
    return Wrong(status, detail, code=_CODES.get(status, "bad_request"), headers=headers).response()


_CONTENT = 'must be a string, or a list of {"type": "text", "text": "…"}: this model reads text only'
_ROLE = "must be 'system', 'developer', 'user' or 'assistant': there are no tools here"


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """For FastAPI: a request that is not as its model says."""
    assert isinstance(error, RequestValidationError)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        return Wrong(415, "send the body as Content-Type: application/json", code="unsupported_media_type").response()
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return Wrong(400, f"the body is not JSON: {problem['ctx']['error']}", code="invalid_json").response()
    param = _path(problem["loc"])
    return Wrong(400, _sentence(param, problem), code=_code(problem), param=param or None).response()


def _path(location: tuple[int | str, ...]) -> str:
    """(body, messages, 2, content, str) → messages[2].content: members of unions are no places of the request."""
    path = ""
    for step in location[1:]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif re.fullmatch(r"[a-z_]+", step) and step not in ("str", "bool", "float", "int"):
            path += f".{step}" if path else step
    return path


def _sentence(param: str, problem: Any) -> str:
    field = param.partition("[")[0].partition(".")[0]
    if problem["type"] == "missing":
        return f"{param or 'the body'} is missing" if param else "the body is missing; send a JSON object"
    if problem["type"] == "extra_forbidden":
        return f"{param} is not known here; leave it out"
    if re.search(r"\.content\b", param):
        return f"{param} {_CONTENT}"
    if re.search(r"\.role$", param):
        return f"{param} {_ROLE}"
    said = str(problem["msg"])
    said = said.replace("Input should", "should").removeprefix("Value error, ")
    if field in UNSUPPORTED:
        return f"{field} is not supported here beyond what changes nothing; leave it out ({param} {said})"
    return f"{param}: {said}" if param else said


UNSUPPORTED: set[str] = set()
"""Fields that are only taken where they ask for nothing; filled by the request's model."""


def _code(problem: Any) -> str:
    kinds = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
    return kinds.get(problem["type"], "invalid_value")
