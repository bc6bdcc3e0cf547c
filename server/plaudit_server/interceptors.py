"""Around every rpc: refusals become rich statuses, and nobody sees a stack trace."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from plaudit_server.refusal import Refusal

log = logging.getLogger(__name__)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns Refusal into its status, and anything unforeseen into INTERNAL with a number that the log knows."""

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
                _guarded(handler.stream_stream, method), handler.request_deserializer, handler.response_serializer
            )
        if handler.response_streaming:
            assert handler.unary_stream is not None
            return grpc.unary_stream_rpc_method_handler(
                _guarded(handler.unary_stream, method), handler.request_deserializer, handler.response_serializer
            )
        assert handler.unary_unary is not None
        return grpc.unary_unary_rpc_method_handler(
            _guarded(handler.unary_unary, method), handler.request_deserializer, handler.response_serializer
        )


def _guarded(behaviour: Any, method: str) -> Any:
    """All kinds of handler are coroutines: streaming ones write to their context (see chat.py)."""

    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except Refusal as refusal:
            await _abort(context, refusal.status())
        except grpc.aio.BaseError:
            raise
        except Exception as error:  # noqa: BLE001 - the last line of defence
            await _abort(context, _internal(method, error))

    return guarded


def _internal(method: str, error: Exception) -> status_pb2.Status:
    number = uuid.uuid4().hex[:12]
    log.error("%s failed, error %s", method, number, exc_info=error)
    return status_pb2.Status(code=code_pb2.INTERNAL, message=f"internal error {number}; the server's log has the rest")


async def _abort(context: grpc.aio.ServicerContext[Any, Any], status: status_pb2.Status) -> None:
    rich = rpc_status.to_status(status)
    try:
        await context.abort(rich.code, rich.details, tuple(rich.trailing_metadata))
    except grpc.aio.InternalError as error:
        # A message stands before the status, and the caller does not read it: the call can only be reset.
        raise asyncio.CancelledError from error
