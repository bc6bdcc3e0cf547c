"""A whole deployment for a benchmark or a test: `plaudit up` in a directory of its own, on free ports."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families

from plaudit_client import AsyncClient, PlauditError, Policies

_START_SECONDS = 600.0


@dataclass(frozen=True)
class Deployment:
    """What runs."""

    clients: list[AsyncClient]
    """One for each server."""
    metrics_port: int
    """The learner's; the servers' and the gateway's follow it."""
    gateway: str
    """The gateway's URL."""
    up: asyncio.subprocess.Process

    def metric(self, name: str, program: int = 0, **labels: str) -> dict[tuple[str, ...], float]:
        """The samples of a metric by the values of their labels; program 0 is the learner, 1 the first server, …"""
        with urlopen(f"http://127.0.0.1:{self.metrics_port + program}/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return {
            tuple(sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        }

    def process(self, module: str) -> psutil.Process:
        """The running child that runs a Python module, e.g. plaudit_learner.app. Raises LookupError if none does."""
        for child in psutil.Process(self.up.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if module in child.cmdline():
                    return child
        raise LookupError(f"{module} does not run")


@asynccontextmanager
async def running(data: Path, *options: str, servers: int = 1) -> AsyncIterator[Deployment]:
    """A deployment that serves; its output goes to `data`/up.log. Raises RuntimeError if it ends before it serves."""
    port = free_range(3 * servers + 3)
    control_port, gateway_port, metrics_port = port + servers, port + 2 * servers, port + 2 * servers + 1
    data.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "plaudit_cli.main", "up", *options]
    command += [f"--data={data}", f"--port={port}", f"--control-port={control_port}"]
    command += [f"--metrics-port={metrics_port}", f"--gateway-port={gateway_port}", f"--servers={servers}"]
    with (data / "up.log").open("ab") as log:
        up = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL)
        try:
            async with AsyncExitStack() as stack:
                clients = [
                    await stack.enter_async_context(
                        AsyncClient(
                            f"127.0.0.1:{port + index}", control=f"127.0.0.1:{control_port + index}", keep_feedback=0
                        )
                    )
                    for index in range(servers)
                ]
                async with asyncio.timeout(_START_SECONDS):
                    while not all([await serves(client) for client in clients]):
                        if up.returncode is not None:
                            raise RuntimeError(f"plaudit up ended with status {up.returncode}; see {data / 'up.log'}")
                        await asyncio.sleep(0.2)
                yield Deployment(clients, metrics_port, f"http://127.0.0.1:{gateway_port}", up)
        finally:
            with suppress(ProcessLookupError):
                up.send_signal(signal.SIGTERM)
            await up.wait()


async def serves(client: AsyncClient) -> bool:
    """Whether the server is there and says SERVING."""
    try:
        return await client.healthy()
    except PlauditError:
        return False


async def until_operable(client: AsyncClient) -> None:
    """Wait until a server answers operators: one that was killed may have to be started more than once, and the way to
    its control address is found again up to two seconds after the other. Raises TimeoutError."""
    async with asyncio.timeout(120):
        while True:
            with suppress(PlauditError):
                await client.list_policies()
                return
            await asyncio.sleep(0.1)


async def until_served(client: AsyncClient, version: str) -> None:
    """Wait until a server gives new requests `version`: it knows of one before it serves it. Raises TimeoutError."""
    async with asyncio.timeout(60):
        while (await client.list_policies()).serving_version != version:
            await asyncio.sleep(0.1)


def rounds(policies: Policies) -> int:
    """How many of the learner's rounds have ended, by what the server shows."""
    return int(max((policy.metrics.get("round", 0.0) for policy in policies.policies), default=0.0))


async def until_round(client: AsyncClient, number: int, seconds: float) -> Policies:
    """Wait until the learner has ended that round, and until the server serves what came of it. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            policies = await client.list_policies()
            stable = [policy.version for policy in policies.policies if policy.state == "stable"]
            if rounds(policies) >= number and stable == [policies.serving_version]:
                return policies
            await asyncio.sleep(0.5)


def free_range(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on now."""
    while True:
        first = random.randrange(20000, 32000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
