"""Around every rpc: its caller is known and may make it; what is no request and what is refused becomes a rich status;
nobody sees a stack trace.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from plaudit_server import caller, calls
from plaudit_server.authentication import Authentication, permit
from plaudit_server.calls import Call
from plaudit_server.metrics import ServerMetrics
from plaudit_server.places import OPEN_TO_ANYBODY, Places
from plaudit_server.refusal import Refusal

log = logging.getLogger(__name__)

_REQUEST_SECONDS = 30.0  # from the beginning of a call that takes one request to that request


def _meant(record: logging.LogRecord) -> bool:
    """Not that a caller left just when it was answered, which gRPC reports with a stack trace: anybody can do that."""
    return "ExecuteBatchError raised in core" not in record.getMessage()


logging.getLogger("grpc._cython.cygrpc").addFilter(_meant)


class Guard(grpc.aio.ServerInterceptor):
    """Lets in who may; turns Refusal into its status, the unforeseen into INTERNAL with a number that the log knows.

    Requests are read and decoded here, within reach of that: gRPC calls bytes that are no request UNKNOWN, and waits
    for a request for ever, before anybody has asked whose it is. What strangers send is not even read.
    """

    def __init__(self, authentication: Authentication, metrics: ServerMetrics, max_calls: int) -> None:
        """Of one address. `max_calls`: of known callers, open at once."""
        self._authentication = authentication
        self._metrics = metrics
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._known = Places(max_calls, f"{max_calls:,} calls are open, the most that this server takes")
        self._anybody = Places(
            OPEN_TO_ANYBODY,
            f"{OPEN_TO_ANYBODY} calls of this connection to health and reflection are open, the most that this server "
            "takes",
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the kinds of rpc that there are. To gRPC all take streams: those it hands over before it reads."""
        method = handler_call_details.method
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:  # such names are without end: none is kept
                return None
            self._handlers[method] = self._wrapped(handler, method)
        return self._handlers[method]

    def _wrapped(self, handler: Any, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        encode = handler.response_serializer
        behaviour = handler.stream_stream or handler.unary_stream or handler.unary_unary
        ours = method.startswith("/plaudit.")  # health and reflection are anybody's, and not told of
        if inspect.isasyncgenfunction(behaviour):  # reflection's; ours are coroutines that write (see chat.py)
            behaviour = _writing(behaviour)
        elif not handler.response_streaming and not ours:
            behaviour = _answering(behaviour)
        guarded = self._guarded(behaviour, handler, method, ours=ours)
        if handler.response_streaming or not ours:
            return grpc.stream_stream_rpc_method_handler(guarded, None, encode)
        return grpc.stream_unary_rpc_method_handler(guarded, None, encode)

    def _guarded(self, behaviour: Any, handler: Any, method: str, *, ours: bool) -> Any:
        decode = _decoder(handler.request_deserializer or bytes)
        named = method.removeprefix("/").removeprefix("plaudit.v1.")

        async def guarded(raw: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            call = Call(method)
            try:
                if ours:
                    self._let_in(context, method)
                    # Not before: strangers get a line in the log, and fill nobody's traces.
                    calls.current.set(call)
                    call.trace(context)
                with self._known.one_more() if ours else self._anybody.one_more(context.peer()):
                    request = _decode_each(decode, raw) if handler.request_streaming else decode(await _only(context))
                    return await behaviour(request, context)
            except Refusal as refusal:
                call.code, call.wrong = refusal.code.name, refusal.field or ""
                await _abort(context, refusal.status())
            except grpc.aio.BaseError:  # its caller does not listen any more, or was told what is wrong
                call.code = _told(context).name
                raise
            except NotImplementedError:  # of a service that is not ours: Health.List
                call.code = "UNIMPLEMENTED"
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this method is not served here")
            except Exception as error:  # noqa: BLE001 - the last line of defence
                call.code = "INTERNAL"
                await _abort(context, _internal(method, error))
            except asyncio.CancelledError:
                call.code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
                raise
            finally:
                self._metrics.grpc_handled.labels(named, call.code).inc()
                if ours:
                    call.end()

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


def _told(context: grpc.aio.ServicerContext[Any, Any]) -> grpc.StatusCode:
    """What the handler itself told its caller; CANCELLED if it had no time to."""
    number: Any = context.code()  # an int, whatever was given
    told = {code.value[0]: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK}
    return told.get(number, grpc.StatusCode.CANCELLED)


def _decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Raises Refusal INVALID_ARGUMENT for what is no message of the kind, nested too deeply (100) included."""

    def decoded(raw: bytes) -> Any:
        try:
            return decode(raw)
        except DecodeError as error:  # says which kind, and what is wrong with it
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"the request cannot be read: {error}") from error

    return decoded


async def _only(context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    """The request of a call that takes one. Raises Refusal if there is none, or none in time."""
    try:
        async with asyncio.timeout(_REQUEST_SECONDS):
            raw = await context.read()
    except TimeoutError as error:
        raise Refusal(
            grpc.StatusCode.DEADLINE_EXCEEDED, f"no request came within {_REQUEST_SECONDS:g} s of the call's beginning"
        ) from error
    if raw is grpc.aio.EOF:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the call ended without a request; send one")
    return bytes(raw)


async def _decode_each(decode: Callable[[bytes], Any], raw: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for each in raw:
        yield decode(each)


def _writing(generator: Any) -> Any:
    async def writing(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async for response in generator(request, context):
            await context.write(response)

    return writing


def _answering(behaviour: Any) -> Any:
    """Writes its answer itself: where gRPC does, the call's place is free before the answer is gone."""

    async def answering(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.write(await behaviour(request, context))

    return answering


def _internal(method: str, error: Exception) -> status_pb2.Status:
    number = uuid.uuid4().hex[:12]
    # Where and what kind, but not what it says: that may quote the request, and logs hold nobody's words.
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s failed, error %s: %s\n%s", method, number, type(error).__name__, where)
    log.debug("error %s: %s", number, error)
    return status_pb2.Status(code=code_pb2.INTERNAL, message=f"internal error {number}; the server's log has the rest")


async def _abort(context: grpc.aio.ServicerContext[Any, Any], status: status_pb2.Status) -> None:
    rich = rpc_status.to_status(status)
    try:
        await context.abort(rich.code, rich.details, tuple(rich.trailing_metadata))
    except grpc.aio.InternalError as error:
        # A message stands before the status, and the caller does not read it: gRPC leaves the call to its caller.
        raise asyncio.CancelledError from error
