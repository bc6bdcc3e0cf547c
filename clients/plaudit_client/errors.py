"""What can go wrong, as the caller should tell it apart.

    PlauditError
    ├── InvalidRequest        a field is wrong: `field`, `violations`
    ├── Unauthenticated       no API key or client certificate that the server knows
    ├── PermissionDenied      a known one, which may not do this
    ├── NotFound              no such policy version, or no such service at that address
    ├── FailedPrecondition    right, but not now: an expired receipt, a version that was rejected
    ├── ResourceExhausted     too much at once: `retry_after`
    │   └── RequestTooLarge   more bytes than the server reads
    ├── Unavailable           nothing answers, or the server is draining: `retry_after`
    ├── DeadlineExceeded      the caller's time ran out
    ├── Cancelled             the server ended the call
    └── ServerError           everything else; `code` says what

Each carries the server's sentence, which says what would be right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from google.rpc.status_pb2 import Status


class PlauditError(Exception):
    """Base of all that the SDK raises. `message` is a sentence for a person; `code` is the gRPC code's name."""

    code = "UNKNOWN"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.address = ""
        """The address that was called, if the message names it: not for strangers' eyes."""


class InvalidRequest(PlauditError):
    """A field of the request is wrong. Sending it again changes nothing."""

    code = "INVALID_ARGUMENT"

    def __init__(self, field: str, message: str, violations: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.field = field
        """Path of the (first) wrong field, e.g. `messages[2].role`; empty if the server did not say."""
        self.violations = tuple(violations) or ((field, message),)
        """Every wrong field, with what would be right."""

    def __str__(self) -> str:
        return "; ".join(f"{field}: {message}" if field else message for field, message in self.violations)


class Unauthenticated(PlauditError):
    """The server knows no such caller: an API key or a client certificate is missing, unknown or expired."""

    code = "UNAUTHENTICATED"


class PermissionDenied(PlauditError):
    """The caller's API key or client certificate has no permission for this call."""

    code = "PERMISSION_DENIED"


class NotFound(PlauditError):
    """There is no policy version of that name; or the address has no such service."""

    code = "NOT_FOUND"


class FailedPrecondition(PlauditError):
    """The request is well formed, but cannot be done as things stand."""

    code = "FAILED_PRECONDITION"


class _Later(PlauditError):
    """The same request may succeed later."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which the same request may succeed; None: the server did not say, and it may never do."""


class ResourceExhausted(_Later):
    """The server has too much to do already."""

    code = "RESOURCE_EXHAUSTED"


class RequestTooLarge(ResourceExhausted):
    """The request has more bytes than the server reads. Sending it again changes nothing."""


class Unavailable(_Later):
    """Nothing answers at the address, or the server is going down, or its engine is."""

    code = "UNAVAILABLE"


class DeadlineExceeded(PlauditError):
    """The call took longer than its `timeout`."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(PlauditError):
    """The server cancelled the call."""

    code = "CANCELLED"


class ServerError(PlauditError):
    """The server failed, or refused in a way that the SDK does not know."""

    def __init__(self, message: str, code: str = "INTERNAL") -> None:
        super().__init__(message)
        self.code = code


_PLAIN: dict[grpc.StatusCode, type[PlauditError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}


_CUT_OFF = "Internal error from Core"
"""What grpc.aio makes, by itself, of a stream that the server ends while the client is sending the next message."""
# RESOURCE_EXHAUSTED that is gRPC's own says no time: neither where the same request can never succeed, nor where it can
# as soon as another call has ended.
_TOO_LARGE = "message larger than max"
_TOO_MANY_CALLS = "Concurrent RPC limit exceeded"
_CALL_ENDS = 1.0  # seconds


def from_rpc(error: grpc.aio.AioRpcError, address: str) -> PlauditError:
    """The exception that stands for a failed call to `address`."""
    code, message = error.code(), error.details() or error.code().name
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        violations = _violations(_status(error))
        return InvalidRequest(*violations[0], violations) if violations else InvalidRequest("", message)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        if _TOO_LARGE in message:
            return RequestTooLarge(message)
        return ResourceExhausted(message, _CALL_ENDS if _TOO_MANY_CALLS in message else _retry_after(_status(error)))
    if message == _CUT_OFF:
        return Unavailable("the call ended while something was being sent; the server's reason is lost")
    if code == grpc.StatusCode.UNAVAILABLE:
        if message.startswith(_NO_CONNECTION):
            return _at(address, Unavailable(_unreachable(message, address)))
        return Unavailable(message, _retry_after(_status(error)))
    if code == grpc.StatusCode.UNIMPLEMENTED:
        missing = (
            f"{address} does not have this service: chat and feedback are at a server's public address, "
            "operators' calls at its control address"
        )
        return _at(address, NotFound(missing))
    if code in _PLAIN:
        return _PLAIN[code](message)
    return ServerError(message, code.name)


def _status(error: grpc.aio.AioRpcError) -> Status | None:
    # What google.rpc helpers cost to import is only paid by calls that fail.
    from grpc_status import rpc_status

    try:
        status: Status | None = rpc_status.from_call(error)
    except ValueError:  # a proxy rewrote the code or the sentence: those of the call stand, the details are lost
        return None
    return status


def _violations(status: Status | None) -> list[tuple[str, str]]:
    from google.rpc.error_details_pb2 import BadRequest

    found = []
    for detail in status.details if status else ():
        request = BadRequest()
        if detail.Unpack(request):
            found += [(violation.field, violation.description) for violation in request.field_violations]
    return found


def _retry_after(status: Status | None) -> float | None:
    from google.rpc.error_details_pb2 import RetryInfo

    for detail in status.details if status else ():
        retry = RetryInfo()
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToNanoseconds()) / 1e9
    return None


# What gRPC's sentence says of the cause, and what it means. With TLS 1.3 a server that misses the client's certificate
# just closes, as does one that speaks TLS when the client does not.
_NO_CONNECTION = (
    "connections to all backends failing",
    "errors resolving",
    "failed to connect to all addresses",
    "DNS resolution failed",
)
_SILENT = (
    "Connection refused",
    "Name or service not known",
    "Domain name not found",
    "DNS resolution failed",
    "timed out",
)
_TURNED_AWAY = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not signed by a CA that is trusted here",
    "Hostname Verification": "its certificate is for another name",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "Socket closed": "it closed the connection; it may ask for TLS, or for a client certificate",
}


def _at(address: str, failure: PlauditError) -> PlauditError:
    failure.address = address
    return failure


def _unreachable(message: str, address: str) -> str:
    # gRPC's own sentence names every socket address it tried; only its end says why.
    for words, meaning in _TURNED_AWAY.items():
        if words in message:
            return f"no connection to {address}: {meaning}"
    cause = next((words.lower() for words in _SILENT if words in message), "")
    return f"nothing answers at {address}" + (f" ({cause})" if cause else "")
