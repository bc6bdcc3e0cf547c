"""One real server and one gateway before it, for all tests here; both on free ports, in a loop of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from plaudit.broker import free_port
from plaudit_gateway import app
from plaudit_gateway.config import GatewaySettings
from plaudit_server.rpc import Addresses
from tests.fixtures_server import Deployment, serving


@dataclass(frozen=True)
class Gateway:
    """A running one."""

    url: str
    server: Addresses
    metrics: str
    """URL of the server's metrics."""
    deployment: Deployment

    @property
    def base(self) -> str:
        """What OpenAI's clients call `base_url`."""
        return f"{self.url}/v1"

    def metric(self, name: str, **labels: str) -> float:
        """A sample of the server's metrics, or the sum of several."""
        with urlopen(self.metrics, timeout=10) as answer:  # noqa: S310 - our own
            families = list(text_string_to_metric_families(answer.read().decode()))
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    async def until(self, name: str, value: float) -> None:
        """Wait until the server's metric is that. Raises TimeoutError."""
        async with asyncio.timeout(30):
            while await asyncio.to_thread(self.metric, name) != value:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def gateway(addresses: Addresses, **settings: Any) -> AsyncIterator[str]:
    """A gateway before a server; its URL."""
    values: dict[str, Any] = {"listen": "127.0.0.1:0", "server": addresses.public, "control": addresses.control}
    async with serving(partial(app.run, GatewaySettings(**{**values, **settings}))) as url:
        yield url


@contextmanager
def in_a_thread(serve: Callable[[asyncio.Event, Callable[[Any], None]], Any]) -> Iterator[Any]:
    """Run `serve(stop, started)` in a loop of its own: clients that block would stop one that they share with it."""
    begun: threading.Event = threading.Event()
    result: list[Any] = []
    failure: list[BaseException] = []
    stops: list[Callable[[], object]] = []

    async def work() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))

        def started(value: Any) -> None:
            result.append(value)
            begun.set()

        await serve(stop, started)

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:  # noqa: BLE001 - raised below, in the test
            failure.append(error)
        finally:
            begun.set()

    thread = threading.Thread(target=run, name="gateway")
    thread.start()
    begun.wait(60)
    try:
        if failure:
            raise failure[0]
        yield result[0]
    finally:
        if stops:
            stops[0]()
        thread.join(60)
        if failure:
            raise failure[0]


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_model_sha256: str) -> Iterator[Gateway]:
    """v1 answers, and ends its replies at max_tokens only: they can be caught running."""
    root = tmp_path_factory.mktemp("gateway")
    (root / "receipt.key").write_bytes(b"k" * 32)
    (root / "user.key").write_bytes(b"u" * 32)
    deployment = Deployment(root, tiny_model, tiny_model_sha256, f"sqlite:{root / 'events.sqlite'}")
    deployment.publish_endless("v1")
    port = free_port()

    async def serve(stop: asyncio.Event, started: Callable[[Gateway], None]) -> None:
        async with AsyncExitStack() as stack:
            limits: dict[str, Any] = {"max_running": 2, "max_waiting": 1, "max_context": 2048, "max_tokens": 1900}
            addresses = await stack.enter_async_context(deployment.running(metrics_port=port, **limits))
            url = await stack.enter_async_context(gateway(addresses, body_seconds=0.5, max_body_bytes=1 << 16))
            started(Gateway(url, addresses, f"http://127.0.0.1:{port}/metrics", deployment))
            await stop.wait()

    with in_a_thread(serve) as made:
        yield made


@pytest.fixture
def client(served: Gateway) -> Iterator[OpenAI]:
    """OpenAI's own; without its retries, so that each refusal is seen."""
    with OpenAI(base_url=served.base, api_key="nobody-asks", max_retries=0) as made:
        yield made


@pytest.fixture
def http(served: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client
