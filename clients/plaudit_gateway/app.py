"""plaudit-gateway: one connection to the servers, HTTP in front of it, and a clean end.

stop:  no new connections → running requests end, for up to drain-seconds → the connection to the servers
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from plaudit.lifecycle import log_to_stderr, on_stop
from plaudit.settings import parse
from plaudit_gateway.config import GatewaySettings

if TYPE_CHECKING:
    import grpc

log = logging.getLogger(__name__)

PROGRAM = "plaudit-gateway"


def main() -> int:
    """The command; returns its exit status."""
    settings = parse(GatewaySettings, PROGRAM)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what matters is raised
    log_to_stderr(PROGRAM, settings.log_format, settings.log_level)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # anybody can fill the log; Edge says what matters
    _allow_open_files()
    from plaudit_client import PlauditError

    try:
        import uvloop

        uvloop.run(_until_asked(settings))
    except (OSError, PlauditError, ValueError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


def _allow_open_files() -> None:
    """As many as this process may have: often it begins with 1,024, fewer than connections, and then takes no more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems call it unlimited, and it is not
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _until_asked(settings: GatewaySettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    on_stop(partial(loop.call_soon_threadsafe, stop.set), exit_with_parent=settings.exit_with_parent)
    await run(settings, stop)


async def run(settings: GatewaySettings, stop: asyncio.Event, started: asyncio.Future[str] | None = None) -> None:
    """Serve until `stop` is set. `started` gets the URL once requests are served.

    Raises OSError if it cannot listen or a file cannot be read, PlauditError or ValueError if a file is not what it
    should be.
    """
    import uvicorn
    from prometheus_client import CollectorRegistry

    from plaudit import metrics_port, tracing
    from plaudit_client import AsyncClient
    from plaudit_gateway import certificate
    from plaudit_gateway.api import build
    from plaudit_gateway.connections import bounded
    from plaudit_gateway.metrics import GatewayMetrics

    class Server(uvicorn.Server):
        """Signals are on_stop's."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            log.info("serving %s at %s", settings.server, url)
            if started is not None:
                started.set_result(url)

    metrics = GatewayMetrics(CollectorRegistry())
    async with AsyncExitStack() as down:
        if settings.traces:
            down.enter_context(tracing.on(PROGRAM))
        down.enter_context(metrics_port.serving(metrics.registry, settings.metrics_host, settings.metrics_port))
        client = await down.enter_async_context(
            AsyncClient(
                settings.server,
                control=settings.control,
                credentials=_credentials(settings),
                api_key="",
                # Another server may take what one refuses; waiting for the same one is the caller's to decide.
                max_retries=settings.server.count(",") if settings.retries is None else settings.retries,
                keep_feedback=0,
            )
        )
        sock = down.enter_context(_listen(settings.listen))
        tls: ssl.SSLContext | None = None
        if settings.tls_certificate is not None and settings.tls_key is not None:
            tls = certificate.context(settings.tls_certificate, settings.tls_key)
            renewing = asyncio.create_task(certificate.renew(tls, settings.tls_certificate, settings.tls_key))
            down.callback(renewing.cancel)
        url = f"{'http' if tls is None else 'https'}://{settings.listen.rpartition(':')[0]}:{sock.getsockname()[1]}"
        config = uvicorn.Config(
            build(settings, client, metrics, stop, _observe_key(settings)),
            http=bounded(settings.max_connections, settings.head_seconds, metrics.refused.labels("connection").inc),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=settings.drain_seconds,
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )
        server = Server(config)
        serving = asyncio.create_task(server.serve([sock]), name="serve")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        down.callback(stopping.cancel)
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
    log.info("stopped")


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, int(port)), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen at {address}: {getattr(error, 'strerror', None) or error}") from None
    # Connections inherit it. asyncio sets it for sockets of its own making only, and without it the second piece of a
    # reply waits for the first one's acknowledgement, 40 ms.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _observe_key(settings: GatewaySettings) -> str:
    if settings.observe_key_file is None:
        return ""
    key = settings.observe_key_file.read_text().strip()
    if not key:
        raise ValueError(f"{settings.observe_key_file} is empty; it must hold an API key")
    return key


def _credentials(settings: GatewaySettings) -> grpc.ChannelCredentials | None:
    from plaudit_client import tls

    if not (settings.server_tls or settings.server_ca or settings.client_certificate):
        return None
    return tls(settings.server_ca, settings.client_certificate, settings.client_key)


if __name__ == "__main__":
    sys.exit(main())
