"""How `plaudit up` shares the machine out between programs."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from plaudit_cli.supervisor import Program, Supervisor
from plaudit_cli.up import bound_cores

_GIVES_WAY = """
import os, sys, time
while "nice 19" not in open("/proc/self/autogroup").read():
    time.sleep(0.01)
print("gives way at", os.nice(0), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel does not group by sessions")
async def test_a_nice_program_gives_way_with_its_whole_session(tmp_path: Path) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    supervisor = Supervisor(tmp_path, lambda _, line: said.put_nowait(line), said.put_nowait)
    supervisor.start(Program("learner", [sys.executable, "-c", _GIVES_WAY], nice=19))
    try:
        async with asyncio.timeout(60):
            assert await said.get() == "gives way at 19"
    finally:
        await supervisor.stop(["learner"])


@pytest.mark.parametrize(
    ("cores", "servers", "bound"),
    [
        ([0, 1], 1, [None]),
        ([0, 1], 2, ["0", "1"]),
        ([0, 1, 2, 3, 6], 2, ["0,2", "1,3"]),
        ([4], 2, ["nobind", "nobind"]),
    ],
)
def test_no_two_servers_compute_on_the_same_cores(
    monkeypatch: pytest.MonkeyPatch, cores: list[int], servers: int, bound: list[str | None]
) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    assert [told.get("VLLM_CPU_OMP_THREADS_BIND") for told in bound_cores(cores, servers)] == bound
