"""`make bench-votes SIZE=small`: kill -9 of server and learner, a cut network, and nothing lost or doubled."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BENCH = Path(__file__).parents[2] / "bench" / "votes.py"


@pytest.mark.parametrize("log", [pytest.param("kafka", marks=pytest.mark.kafka), "sqlite"])
async def test_nothing_is_lost_and_nothing_doubled(log: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, BENCH, "--size=small", f"--log={log}", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    assert result["pass"], result
    assert process.returncode == 0
    figures = result["figures"]
    assert sum(figures["faults"].values()) == 3
    assert (figures["ours"]["lost"], figures["ours"]["doubled"]) == (0, 0)
    if log == "kafka":
        assert figures["plain"]["doubled"] > 0, "duplicates count there, so they were sent"
