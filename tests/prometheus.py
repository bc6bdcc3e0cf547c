"""A real Prometheus on a free port, that scrapes programs on this machine every second."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from bench.deployment import free_range
from monitoring.rules import FILES, shortened

INTERVAL = "1s"

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (apt-get install prometheus)"
)


@dataclass(frozen=True)
class Prometheus:
    """What runs."""

    address: str
    since: float
    """Unix time."""

    async def ask(self, path: str, **query: str) -> Any:
        """The data of its HTTP API's answer. Raises OSError."""

        def get() -> Any:
            with urlopen(f"{self.address}/api/v1/{path}?{urlencode(query)}", timeout=10) as answer:
                return json.load(answer)["data"]

        return await asyncio.to_thread(get)

    async def firing(self) -> set[str]:
        """The alerts that fire now."""
        alerts = (await self.ask("alerts"))["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    async def until_firing(self, *names: str, seconds: float = 120.0) -> None:
        """Wait until each of them has fired. Raises AssertionError that names those that have not."""
        missing = set(names)
        deadline = time.monotonic() + seconds
        while missing:
            missing -= await self.firing()
            assert time.monotonic() < deadline or not missing, f"these did not fire: {', '.join(sorted(missing))}"
            await asyncio.sleep(0.25)

    async def until_quiet(self, *names: str, seconds: float = 120.0) -> None:
        """Wait until none of them fires; none at all if none is named. Raises AssertionError that names who does."""
        deadline = time.monotonic() + seconds
        while firing := {alert for alert in await self.firing() if alert in names or not names}:
            assert time.monotonic() < deadline, f"these still fire: {', '.join(sorted(firing))}"
            await asyncio.sleep(0.25)

    async def values(self, expr: str) -> list[float]:
        """Every figure that a query had since the beginning."""
        query = {"query": expr, "start": str(self.since), "end": str(time.time()), "step": "1"}
        data = await self.ask("query_range", **query)
        return [float(value) for series in data["result"] for _, value in series["values"]]


@asynccontextmanager
async def scraping(directory: Path, targets: Mapping[str, Sequence[int]]) -> AsyncIterator[Prometheus]:
    """Scrapes ports of this machine, by job, by the chart's rules in less time; its log goes to prometheus.log."""
    rules = directory / "rules"
    rules.mkdir(parents=True)
    for file in FILES:
        (rules / file.name).write_text(yaml.safe_dump(shortened(yaml.safe_load(file.read_text()), INTERVAL)))
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
        for job, ports in targets.items()
    ]
    every = {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL}
    config = {"global": every, "rule_files": [f"{rules}/*.yaml"], "scrape_configs": jobs}
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_range(1)
    command = ["prometheus", f"--config.file={directory / 'prometheus.yaml'}", "--log.level=warn"]
    command += [f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (directory / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{port}", time.time())
            async with asyncio.timeout(30):
                while True:
                    assert process.returncode is None, (directory / "prometheus.log").read_text()
                    with suppress(OSError):
                        await prometheus.ask("status/buildinfo")
                        break
                    await asyncio.sleep(0.1)
            yield prometheus
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
