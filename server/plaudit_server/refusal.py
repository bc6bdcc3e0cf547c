"""How a request is refused: with a code, a sentence, and the details that clients can act on (google.rpc)."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2


class Refusal(Exception):
    """Raised anywhere below an rpc; the interceptor turns it into a rich status. Says what would be right."""

    def __init__(
        self, code: grpc.StatusCode, message: str, *, field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        """The request's field that is wrong, as a path: `messages[2].role`."""
        self.retry_after = retry_after
        """Seconds after which the same request may succeed."""

    def status(self) -> status_pb2.Status:
        """The refusal as google.rpc.Status, with BadRequest and RetryInfo where they apply."""
        details = []
        if self.field is not None:
            bad_request = error_details_pb2.BadRequest()
            bad_request.field_violations.add(field=self.field, description=self.message)
            details.append(_pack(bad_request))
        if self.retry_after is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after * 1e9))
            details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
        message = f"{self.field}: {self.message}" if self.field is not None else self.message
        return status_pb2.Status(code=code_pb2.Code.Value(self.code.name), message=message, details=details)


def invalid(field: str, message: str) -> Refusal:
    """INVALID_ARGUMENT: `field` is wrong; `message` says what would be right."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, message, field=field)


def _pack(message: error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
