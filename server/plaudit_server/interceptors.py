"""Around every rpc: its caller is known and may make it, refusals become rich statuses, nobody sees a stack trace."""

from __future__ import annotations

import logging
import traceback
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from plaudit_server import caller
from plaudit_server.authentication import Authentication, permit
from plaudit_server.metrics import ServerMetrics
from plaudit_server.refusal import Refusal

log = logging.getLogger(__name__)


class Guard(grpc.aio.ServerInterceptor):
    """Lets in who may; turns Refusal into its status, the unforeseen into INTERNAL with a number that the log knows."""

    def __init__(self, authentication: Authentication, metrics: ServerMetrics) -> None:
        self._authentication = authentication
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the three kinds of rpc that Plaudit's services have; health and reflection look after themselves."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/plaudit."):
            return handler
        if handler.request_streaming:
            assert handler.stream_stream is not None
            return grpc.stream_stream_rpc_method_handler(
                self._guarded(handler.stream_stream, method), handler.request_deserializer, handler.response_serializer
            )
        if handler.response_streaming:
            assert handler.unary_stream is not None
            return grpc.unary_stream_rpc_method_handler(
                self._guarded(handler.unary_stream, method), handler.request_deserializer, handler.response_serializer
            )
        assert handler.unary_unary is not None
        return grpc.unary_unary_rpc_method_handler(
            self._guarded(handler.unary_unary, method), handler.request_deserializer, handler.response_serializer
        )

    def _guarded(self, behaviour: Any, method: str) -> Any:
        """All kinds of handler are coroutines: streaming ones write to their context (see chat.py)."""

        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                self._let_in(context, method)
                return await behaviour(request, context)
            except Refusal as refusal:
                await _abort(context, refusal.status())
            except grpc.aio.BaseError:
                raise
            except Exception as error:  # noqa: BLE001 - the last line of defence
                await _abort(context, _internal(method, error))

        return guarded

    def _let_in(self, context: grpc.aio.ServicerContext[Any, Any], method: str) -> None:
        """Establish the caller. Raises Refusal UNAUTHENTICATED or PERMISSION_DENIED."""
        try:
            known = self._authentication.caller(context)
            permit(known, method)
        except Refusal as refusal:
            self._metrics.calls_refused.labels(refusal.code.name.lower()).inc()
            raise
        caller.current.set(known)


def _internal(method: str, error: Exception) -> status_pb2.Status:
    number = uuid.uuid4().hex[:12]
    # Where and what kind, but not what it says: that may quote the request, and logs hold nobody's words.
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s failed, error %s: %s\n%s", method, number, type(error).__name__, where)
    log.debug("error %s: %s", number, error)
    return status_pb2.Status(code=code_pb2.INTERNAL, message=f"internal error {number}; the server's log has the rest")


async def _abort(context: grpc.aio.ServicerContext[Any, Any], status: status_pb2.Status) -> None:
    rich = rpc_status.to_status(status)
    await context.abort(rich.code, rich.details, tuple(rich.trailing_metadata))
