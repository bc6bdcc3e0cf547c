"""What every request passes before a route sees it, and every answer behind it.

request ──▶ number, span ──▶ for us? (Host) ──▶ of our own page, or of none? (Origin) ──▶ body: not too large or slow
answer  ◀── count it  ◀── security headers ◀── the unforeseen: 500 and a number that the log knows

A page of another site can make its visitor's browser call addresses on the visitor's own machine. Without CORS it
cannot read the answers; with the check of Origin it cannot vote or promote either; and with that of Host it cannot pass
for our own page by pointing its own name here (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
import uuid

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plaudit import tracing
from plaudit_gateway.config import GatewaySettings
from plaudit_gateway.errors import Wrong
from plaudit_gateway.metrics import GatewayMetrics

log = logging.getLogger(__name__)

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TRACE_CONTEXT = ("traceparent", "tracestate")
_SAFE = ("GET", "HEAD", "OPTIONS")


class Edge:
    """ASGI middleware, around everything else."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        self._app = app
        self._settings = settings
        self._hosts = settings.hosts
        self._origins = frozenset(settings.allow_origin)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number = uuid.uuid4().hex
        status = 0
        began = time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["X-Request-Id"] = number
                for name, value in _HEADERS.items():
                    answered.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        parent = {name: headers[name] for name in _TRACE_CONTEXT if name in headers}
        attributes = {"http.request.method": scope["method"]}
        with (
            self._metrics.running.track_inprogress(),
            tracing.span("HTTP", kind="server", parent=parent, attributes=attributes) as span,
        ):
            try:
                refusal = self._refusal(scope["method"], headers)
                if refusal is not None:
                    await refusal.response()(scope, receive, answer)
                else:
                    await self._app(scope, _Body(receive, scope, self._settings), answer)
            except Exception as error:  # noqa: BLE001 - the last line of defence
                # Where and what kind, but not what it says: that may quote the request, and logs hold nobody's words.
                where = "".join(traceback.format_tb(error.__traceback__))
                log.error("request %s failed: %s\n%s", number, type(error).__name__, where)
                if not status:  # else its head is sent: uvicorn cuts the connection, which tells the caller
                    failed = Wrong(500, f"internal error {number}; the gateway's log has the rest", code="internal")
                    await failed.response()(scope, receive, answer)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                span.set({"http.route": route, "http.response.status_code": status or 499})
                if status >= 500:
                    span.fail(str(status))
                self._metrics.requests.labels(route, status or 499).inc()
                self._metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _refusal(self, method: str, headers: Headers) -> Wrong | None:
        host = headers.get("host", "").lower()
        if self._hosts is not None and _name(host) not in self._hosts:
            self._metrics.refused.labels("host").inc()
            message = f"this gateway is not called {_name(host)[:64]!r}; if it is to be, start it with --allow-host"
            return Wrong(403, message, code="wrong_host")
        origin = headers.get("origin")
        if origin is None or method in _SAFE or origin in self._origins:
            return None
        if origin.partition("://")[2].lower() != host:
            self._metrics.refused.labels("origin").inc()
            message = f"a page of {origin[:64]!r} may not do this; if it is to, start the gateway with --allow-origin"
            return Wrong(403, message, code="wrong_origin")
        return None


class _Body:
    """A `receive` that ends what is too large (413) or too slow (408); after the body it waits without limit."""

    def __init__(self, receive: Receive, scope: Scope, settings: GatewaySettings) -> None:
        self._receive = receive
        self._most = settings.max_body_bytes
        self._seconds = settings.body_seconds
        self._until = asyncio.get_running_loop().time() + settings.body_seconds
        self._size = 0
        self._whole = False
        length = Headers(scope=scope).get("content-length", "0")
        self._announced = int(length) if length.isdecimal() else 0

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        if self._announced > self._most:
            raise self._too_large()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            detail = f"the body did not arrive within {self._seconds:g} s"
            raise HTTPException(408, detail, headers={"Connection": "close"}) from None
        self._size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._size > self._most:
            raise self._too_large()
        return message

    def _too_large(self) -> HTTPException:
        detail = f"the body is too large; the most is {self._most:,} bytes"
        return HTTPException(413, detail, headers={"Connection": "close"})


def _name(host: str) -> str:
    """Of a Host header, without the port; what is no name stays whole."""
    return re.sub(r":\d*$", "", host) if re.fullmatch(r"(\[[\da-f:.]+\]|[^:]+)(:\d*)?", host) else host
