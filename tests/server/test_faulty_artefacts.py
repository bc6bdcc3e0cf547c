"""Whatever is wrong with a version, it is refused loudly, and the old one goes on being served by a living engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from bench.deployment import free_range
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_server.torch_engine import TorchEngine
from tests.fixtures_server import Deployment, until_serving
from tests.server.test_engines import _edit_config, _edit_tensors, _narrow_one, _spoil_one
from tests.tiny_model import make_tiny_adapter

WEIGHTS = "adapter_model.safetensors"


def _flip_a_bit(version: Path) -> None:
    content = bytearray((version / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (version / WEIGHTS).write_bytes(content)


def _cut(version: Path) -> None:
    os.truncate(version / WEIGHTS, (version / WEIGHTS).stat().st_size // 2)


def _nothing(_: Path) -> None:
    pass


# What is done to the adapter before it is published, what to the published version, what the server says.
FAULTS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any], str]] = {
    "wrong hash": (_nothing, _flip_a_bit, "sha256"),
    "missing file": (_nothing, lambda version: (version / WEIGHTS).unlink(), WEIGHTS),
    "upload cut off": (_nothing, _cut, WEIGHTS),
    "safetensors cut off before it was published": (_cut, _nothing, "cannot be read"),
    "another rank than declared": (_edit_config(r=2), _nothing, "has shape"),
    "a rank that cannot be served": (_edit_config(r=1000), _nothing, "rank r is 1000"),
    "NaN": (_edit_tensors(_spoil_one), _nothing, "NaN"),
    "another shape": (_edit_tensors(_narrow_one), _nothing, "has shape"),
}
OTHER_BASE, PASSES_AND_FAILS = "another base model", "passes every check, and cannot be loaded"


@pytest.mark.timeout(240)
async def test_each_fault_is_refused_and_the_old_version_goes_on(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_range(1)
    merge = TorchEngine._load
    doomed: set[str] = set()

    def load(engine: TorchEngine, version: Any) -> None:
        if version.name in doomed:
            raise MemoryError("no room for it")
        merge(engine, version)

    monkeypatch.setattr(TorchEngine, "_load", load)
    deployment.publish("v1", seed=1)
    async with deployment.client(metrics_port=port) as client:
        good = await client.chat("hi", temperature=0.0, max_tokens=16).read()
        for number, fault in enumerate([*FAULTS, OTHER_BASE, PASSES_AND_FAILS], start=2):
            version = f"v{number}"
            before, after, words = FAULTS.get(fault, (_nothing, _nothing, ""))
            adapter = make_tiny_adapter(deployment.root / f"made-{version}", deployment.model, seed=number)
            before(adapter)
            publisher = deployment
            if fault == OTHER_BASE:
                publisher, words = replace(deployment, model_sha256="1" * 64), "base model"
            elif fault == PASSES_AND_FAILS:
                doomed.add(version)
                words = "no room for it"
            sha256 = publisher._publish(version, adapter, parent="v1", announce=False)
            after(deployment.root / "versions" / version)
            refused = await asyncio.to_thread(failures, port)
            deployment.announce(version, PolicyState.POLICY_STATE_STABLE, parent="v1", manifest_sha256=sha256)
            async with asyncio.timeout(30):
                while version not in (policies := await client.list_policies()).failures:
                    await asyncio.sleep(0.02)
            assert words in policies.failures[version], fault
            assert policies.serving_version == "v1", fault
            assert await asyncio.to_thread(failures, port) > refused, fault
            assert any(f"{version} REFUSED" in r.getMessage() for r in caplog.records if r.levelname == "ERROR"), fault
            reply = client.chat("hi", temperature=0.0, max_tokens=16)
            assert (await reply.read(), reply.policy_version) == (good, "v1"), fault
        deployment.publish("v99", seed=99)  # and what is right is served
        await until_serving(client, "v99")


def failures(port: int) -> float:
    """How often a version was refused, by the server's metrics."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("plaudit_version_failures_total{")]
    return sum(float(line.split()[1]) for line in counts)
