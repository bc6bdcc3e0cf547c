"""The program: one at a time, and stopped at any time."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from pathlib import Path

import pytest


async def start(tmp_path: Path, model: Path, *flags: str, stdin: int = DEVNULL) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "plaudit_learner.app",
        f"--model={model}",
        f"--event-log=sqlite:{tmp_path / 'events.sqlite'}",
        f"--policy-store={tmp_path / 'versions'}",
        f"--state-dir={tmp_path / 'learner'}",
        *flags,
        stdin=stdin,
        stdout=PIPE,
        stderr=STDOUT,
    )


async def until(process: Process, words: str) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while words not in (line := (await process.stdout.readline()).decode()):
            assert line, f"it ended before it said {words!r}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly(tmp_path: Path, tiny_model: Path, number: signal.Signals) -> None:
    learner = await start(tmp_path, tiny_model)
    await until(learner, "learning from sqlite:")
    learner.send_signal(number)
    output, _ = await asyncio.wait_for(learner.communicate(), 30)
    assert learner.returncode == 0, output.decode()
    assert b"Traceback" not in output


async def test_it_ends_with_its_supervisor(tmp_path: Path, tiny_model: Path) -> None:
    learner = await start(tmp_path, tiny_model, "--exit-with-parent", stdin=PIPE)
    await until(learner, "learning from sqlite:")
    assert learner.stdin is not None
    learner.stdin.close()
    assert await asyncio.wait_for(learner.wait(), 30) == 0


async def test_a_damaged_experience_store_is_named(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "learner").mkdir()
    store = tmp_path / "learner" / "experience.sqlite"
    store.write_bytes(b"no database at all" * 100)
    learner = await start(tmp_path, tiny_model)
    output, _ = await asyncio.wait_for(learner.communicate(), 60)
    assert learner.returncode == 1
    assert output.decode().splitlines()[-1] == f"plaudit-learner: {store}: file is not a database"
    assert b"Traceback" not in output


async def test_only_one_learner_may_use_a_state_directory(tmp_path: Path, tiny_model: Path) -> None:
    first = await start(tmp_path, tiny_model)
    await until(first, "learning from sqlite:")
    second = await start(tmp_path, tiny_model)
    output, _ = await asyncio.wait_for(second.communicate(), 60)
    assert second.returncode == 1
    assert b"another process uses" in output
    first.terminate()
    await first.communicate()
