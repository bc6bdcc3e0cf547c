"""Real servers on free ports, in this process, on the tiny model and the torch engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from plaudit.artifacts import PolicyStore
from plaudit.events import POLICIES, Record, open_log
from plaudit.pseudonym import pseudonym
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_client import AsyncClient
from plaudit_server import app
from plaudit_server.config import ServerSettings
from plaudit_server.receipts import Receipts, signing_keys
from plaudit_server.rpc import Addresses
from tests.tiny_model import make_endless_adapter, make_tiny_adapter

T = TypeVar("T")


@asynccontextmanager
async def serving(
    program: Callable[[asyncio.Event, asyncio.Future[T]], Coroutine[Any, Any, None]],
) -> AsyncIterator[T]:
    """A program's `run` in this process, and what it says when it has started; asked to stop at the end, and its
    failure raised."""
    started: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    running = asyncio.create_task(program(stop, started))
    waited: set[asyncio.Future[Any]] = {running, started}
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    try:
        yield started.result()
    finally:
        stop.set()
        await running


@dataclass(frozen=True)
class Deployment:
    """What the servers of one deployment share, in a directory of its own."""

    root: Path
    model: Path
    model_sha256: str
    event_log: str

    def settings(self, name: str = "server-0", **overrides: Any) -> ServerSettings:
        values: dict[str, Any] = {
            "model": str(self.model),
            "engine": "torch",
            "listen": "127.0.0.1:0",
            "control_listen": "127.0.0.1:0",
            "event_log": self.event_log,
            "policy_store": str(self.root / "versions"),
            "state_dir": self.root / name,
            "receipt_keys": self.root / "receipt.key",
            "user_key_file": self.root / "user.key",
            "max_context": 512,
            "max_tokens": 256,
            "default_max_tokens": 32,
            "drain_seconds": 20.0,
        }
        return ServerSettings(**{**values, **overrides})

    def receipts(self, lifetime: float = 60.0) -> Receipts:
        """What signs as the servers do."""
        return Receipts(lambda: signing_keys(self.root / "receipt.key"), lifetime)

    def pseudonym(self, user_id: str) -> str:
        """What stands in place of a user id in this deployment's records."""
        return pseudonym((self.root / "user.key").read_bytes(), user_id)

    @asynccontextmanager
    async def running(self, name: str = "server-0", **overrides: Any) -> AsyncIterator[Addresses]:
        """A running server; drained and stopped at the end, and its failure raised."""
        async with serving(partial(app.run, self.settings(name, **overrides))) as addresses:
            yield addresses

    @asynccontextmanager
    async def server(self, name: str = "server-0", **overrides: Any) -> AsyncIterator[str]:
        """As `running`; its public address."""
        async with self.running(name, **overrides) as addresses:
            yield addresses.public

    @asynccontextmanager
    async def client(self, name: str = "server-0", **overrides: Any) -> AsyncIterator[AsyncClient]:
        """As `running`; a client of both its addresses, to which refusals come through."""
        async with self.running(name, **overrides) as addresses:
            async with AsyncClient(
                addresses.public, control=addresses.control, max_retries=0, keep_feedback=0
            ) as client:
                yield client

    def publish(self, version: str, seed: int, *, parent: str = "v0", announce: bool = True) -> str:
        """Store an adapter made from `seed` as `version`; returns the manifest's sha256."""
        adapter = make_tiny_adapter(self.root / f"made-{version}", self.model, seed=seed)
        return self._publish(version, adapter, parent=parent, announce=announce)

    def publish_endless(self, version: str, *, parent: str = "v0", announce: bool = True) -> str:
        """A version whose replies end at max_tokens only: for tests that need a stream to be still running."""
        adapter = make_endless_adapter(self.root / f"made-{version}", self.model)
        return self._publish(version, adapter, parent=parent, announce=announce)

    def _publish(self, version: str, adapter: Path, *, parent: str, announce: bool) -> str:
        _, sha256 = PolicyStore(str(self.root / "versions")).publish(
            version,
            adapter,
            parent=parent,
            base_model_sha256=self.model_sha256,
            window={},
            metrics={},
            created_by="test",
        )
        if announce:
            for state in (PolicyState.POLICY_STATE_CANDIDATE, PolicyState.POLICY_STATE_STABLE):
                self.announce(version, state, parent=parent, manifest_sha256=sha256)
        return sha256

    def announce(self, version: str, state: PolicyState.ValueType, **fields: Any) -> None:
        event = PolicyEvent(schema_version=1, version=version, state=state, actor="learner", **fields)
        event.time.GetCurrentTime()
        with open_log(self.event_log) as log:
            log.append([Record(POLICIES, version, event.SerializeToString())])


@pytest.fixture
def deployment(tmp_path: Path, tiny_model: Path, tiny_model_sha256: str) -> Deployment:
    (tmp_path / "receipt.key").write_bytes(b"k" * 32)
    (tmp_path / "user.key").write_bytes(b"u" * 32)
    return Deployment(tmp_path, tiny_model, tiny_model_sha256, f"sqlite:{tmp_path / 'events.sqlite'}")


@pytest.fixture
async def addresses(deployment: Deployment) -> AsyncIterator[Addresses]:
    async with deployment.running() as addresses:
        yield addresses


@pytest.fixture
def address(addresses: Addresses) -> str:
    """For applications."""
    return addresses.public


@pytest.fixture
def control(addresses: Addresses) -> str:
    """For operators."""
    return addresses.control


@pytest.fixture
async def client(addresses: Addresses) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(addresses.public, control=addresses.control, max_retries=0, keep_feedback=0) as client:
        yield client


async def until_serving(client: AsyncClient, version: str, seconds: float = 30.0) -> None:
    """Wait until the server gives new requests `version`; raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while (await client.list_policies()).serving_version != version:
            await asyncio.sleep(0.02)


async def until_known(client: AsyncClient, version: str, seconds: float = 30.0) -> None:
    """Wait until the server has read of `version` in the event log; raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while version not in [policy.version for policy in (await client.list_policies()).policies]:
            await asyncio.sleep(0.02)
