"""Where a program's Prometheus metrics are served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


@contextmanager
def serving(registry: CollectorRegistry, host: str, port: int) -> Iterator[None]:
    """Serve what `registry` holds over HTTP meanwhile; port 0: nowhere. Raises OSError if it cannot listen."""
    if not port:
        yield
        return
    from prometheus_client import start_http_server

    http, thread = start_http_server(port, addr=host, registry=registry)
    try:
        yield
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
