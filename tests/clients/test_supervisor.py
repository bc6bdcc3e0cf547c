"""What the supervisor does to a program, seen from within it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from plaudit_cli.supervisor import Program, Supervisor

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
