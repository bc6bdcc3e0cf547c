"""What operators see of a real run: a real Prometheus scrapes it, every panel has data, and every fault its alert.

One run: two servers, a broker, a learner, simulated users. The chart's rules are those of production in less time
(monitoring/rules.py). Faults come one after the other, each until its alerts have fired.

Not induced here, because none of it can be had within minutes without touching the program: an engine that dies again
and again, a program that does, slow acknowledgements, records that a log refuses for good, rounds that all fail or do
not begin, canaries that are all rolled back, a reward model that sees nothing, a day without votes. Their alerts have
unit tests (tests/monitoring).
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from bench.deployment import Deployment, free_range, running, until_operable
from monitoring import dashboards
from plaudit.events import FEEDBACK, Record, open_log
from plaudit_cli import personas
from plaudit_cli.prompts import user
from plaudit_cli.simulation import Simulation, run
from plaudit_client import AsyncClient, PlauditError
from tests.prometheus import Prometheus, needs_prometheus, scraping

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.timeout(900), needs_prometheus]

WORDS = ["alpha", "beta", "gamma", "delta", "river", "stone", "cloud", "tree", "bird", "fish", "moon", "star", "wind"]
PROMPTS = [user(f"{first} {second}") for first in WORDS for second in WORDS if first < second]
OPTIONS = (
    "--engine=torch",
    "--kafka",
    "--server-option=max-context=512",
    "--server-option=max-tokens=256",
    "--server-option=max-running=2",
    "--server-option=max-waiting=60",
    "--server-option=outbox-limit=40",
    "--learner-option=votes-per-round=150",
    "--learner-option=iterations=7",
    "--learner-option=kl-budget=1.5",
    "--learner-option=canary-share=0.5",
)


async def test_every_panel_has_data_and_every_fault_its_alert(tmp_path: Path, tiny_model: Path) -> None:
    data, lone_ports = tmp_path / "data", [free_range(1), free_range(1)]
    # This server can keep no version: where its copies would be is a file.
    (data / "server-1").mkdir(parents=True)
    (data / "server-1" / "versions").write_text("in the way")
    async with running(data, *OPTIONS, f"--model={tiny_model}", servers=2) as deployment:
        learner, *servers = range(deployment.metrics_port, deployment.metrics_port + 3)
        targets = {"learner": [learner, *lone_ports], "server": servers}
        hurried(deployment.process("plaudit_learner.app"))
        async with scraping(tmp_path / "prometheus", targets) as prometheus:
            client, other = deployment.clients
            await run(client, personas.load("brief"), PROMPTS, Simulation(150, max_tokens=24, temperature=1.0))
            await run(other, personas.load("brief"), PROMPTS, Simulation(8, max_tokens=24, temperature=1.0))
            await prometheus.until_quiet()  # nothing is wrong; on a busy machine a learner may begin late
            await until_canary(client)
            await prometheus.until_firing("PlauditVersionFailsToLoad", "PlauditCanaryStuck")

            await client.promote_policy("v1", "a test")
            await dislike(client, "v1", 60)
            await prometheus.until_firing("PlauditServersDisagree", "PlauditApprovalFell", "PlauditRewardHacking")

            async with flooded(client):
                await prometheus.until_firing(
                    "PlauditTimeToFirstTokenHigh",
                    "PlauditRequestsShed",
                    "PlauditErrorBudgetBurnFast",
                    "PlauditErrorBudgetBurnSlow",
                )

            with unreadable(data / "receipt.key"):
                await client.chat("hello", max_tokens=2).read()
                await prometheus.until_firing("PlauditFileNotReread")
            with open_log(event_log(data)) as log:
                log.append([Record(FEEDBACK, "nobody", b"no feedback at all \xff")])
            await prometheus.until_firing("PlauditDeadLetters")

            with stopped(deployment.process("plaudit.broker")):
                for number in range(45):  # the outbox holds 40 records: 10 votes, and 30 of the 45 replies
                    reply = client.chat("hello", max_tokens=2)
                    await reply.read()
                    if number < 10:
                        await reply.thumbs_up()
                server_process(deployment, 1).kill()  # comes back, and waits for the log before it has an engine
                await prometheus.until_firing(
                    "PlauditOutboxGrowing",
                    "PlauditOutboxNearlyFull",
                    "PlauditInteractionsLost",
                    "PlauditEventLogUnavailable",
                    "PlauditLearnerStuck",
                    "PlauditLearnerLagging",
                    "PlauditEngineDown",
                )
            await prometheus.until_quiet("PlauditOutboxGrowing", "PlauditOutboxNearlyFull", "PlauditLearnerStuck")

            await until_operable(other)  # it was killed, and may have to be started more than once
            with stopped(server_process(deployment, 0)), stopped(server_process(deployment, 1)):
                await prometheus.until_firing("PlauditServerDown", "PlauditNoServers")
            with stopped(deployment.process("plaudit_learner.app")):
                await prometheus.until_firing("PlauditLearnerDown")
            await prometheus.until_quiet("PlauditServerDown", "PlauditNoServers", "PlauditLearnerDown")
            # Before what went wrong is looked at by itself: what was shown of it.
            await every_panel_has_data(prometheus)

            deployment.up.send_signal(signal.SIGTERM)
            await deployment.up.wait()
            async with (
                # Its first step, a hundred times too long, goes past the budget, and is undone.
                reckless_learner(data, tiny_model, lone_ports[0], "--kl-budget=1.5", "--learning-rate=0.05"),
                # It may go anywhere, and ends where every reply is the same. (With longer steps it may end anywhere.)
                reckless_learner(
                    data, tiny_model, lone_ports[1], "--kl-budget=1000", "--learning-rate=0.01", "--iterations=20"
                ),
            ):
                # A whole round of each, on two cores that other tests use, too.
                await prometheus.until_firing("PlauditKlOutOfBounds", "PlauditEntropyOutOfBounds", seconds=400)


async def until_canary(client: AsyncClient) -> None:
    """Wait until v1 is on trial, and a server gives it to a share of its conversations."""
    async with asyncio.timeout(300):
        async for policy in client.watch_policies():
            if policy.version == "v1":
                assert policy.state == "canary", policy.reason
                break
        while "v1" not in (await client.list_policies()).loaded_versions:
            await asyncio.sleep(0.1)


async def dislike(client: AsyncClient, version: str, votes: int) -> None:
    """Many people vote its replies down."""

    async def one(number: int) -> None:
        reply = client.chat(f"hello {number}", max_tokens=4, policy_version=version, user_id=f"u{number}")
        await reply.read()
        await reply.thumbs_down()

    for first in range(0, votes, 4):
        await asyncio.gather(*map(one, range(first, min(first + 4, votes))))


@asynccontextmanager
async def flooded(client: AsyncClient) -> AsyncIterator[None]:
    """More and longer replies are asked for than there is room for."""

    async def ask() -> None:
        while True:
            try:
                await client.chat("hello", max_tokens=256, policy_version="v0", unrecorded=True).read()
            except PlauditError:
                await asyncio.sleep(0.2)  # refused: others are waiting

    asking = [asyncio.create_task(ask()) for _ in range(80)]
    try:
        yield
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


@contextmanager
def unreadable(key: Path) -> Iterator[None]:
    before = key.read_bytes()
    key.write_bytes(b"short")
    try:
        yield
    finally:
        key.write_bytes(before)


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """It is there, with all that it has started, and does nothing."""
    processes = [process, *process.children(recursive=True)]
    for each in processes:
        each.suspend()
    try:
        yield
    finally:
        for each in processes:
            each.resume()


def hurried(process: psutil.Process) -> None:
    """The learner gives way to all else here, other tests too, and Prometheus would think it dead; as far as we may."""
    with suppress(psutil.AccessDenied, OSError):
        process.nice(0)
        Path(f"/proc/{process.pid}/autogroup").write_text("0")  # Linux weighs sessions first, processes within them


def server_process(deployment: Deployment, index: int) -> psutil.Process:
    for child in psutil.Process(deployment.up.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(argument.endswith(f"server-{index}") for argument in child.cmdline()):
                return child
    raise LookupError(f"server {index} does not run")


def event_log(data: Path) -> str:
    """As `plaudit up` said."""
    found = re.search(r"^kafka +(\S+)$", (data / "up.log").read_text(), re.MULTILINE)
    assert found is not None
    return f"kafka://{found[1]}"


@asynccontextmanager
async def reckless_learner(data: Path, model: Path, port: int, *options: str) -> AsyncIterator[None]:
    """A learner alone, going on from where the other one stood."""
    state = data / f"reckless-{port}"
    shutil.copytree(data / "learner", state)
    command = [sys.executable, "-m", "plaudit_learner.app", f"--model={model}", f"--metrics-port={port}"]
    command += [f"--event-log=sqlite:{state / 'events.sqlite'}", f"--policy-store={data / 'versions'}"]
    command += [f"--state-dir={state}", "--votes-per-round=20", *options]
    with (state / "log").open("wb") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=environment)
        try:
            yield
        finally:
            process.terminate()
            await process.wait()


async def every_panel_has_data(prometheus: Prometheus) -> None:
    empty = []
    for name, text in dashboards.files().items():
        for panel in json.loads(text)["panels"]:
            for target in panel.get("targets", []):
                values = await prometheus.values(filled_in(target["expr"]))
                if all(map(math.isnan, values)):  # or none at all
                    empty.append(f"{name}, {panel['title']}: {target['expr']}")
    assert not empty, "\n".join(empty)


def filled_in(expr: str) -> str:
    """As Grafana fills in the variables, all of everything chosen."""
    expr = expr.replace("$__rate_interval", "5s").replace("$namespace", ".*").replace("$instance", ".*")
    assert "$" not in expr, expr
    return expr
