"""The clock of bench-stream, and how it scales a trace."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.load import EVERY, Heard, Load, Request, drive, figures, replay, steady


def test_figures_of_a_load() -> None:
    heard = [Heard(10.0, [10.1, 10.2, 10.4], tokens=3), Heard(10.5, [10.8, 12.0], tokens=2)]
    found = figures(heard, cpu_seconds=0.01)
    assert found["tokens/s"] == pytest.approx(5 / 2)
    assert found["first token p50, ms"] == pytest.approx(200)
    assert found["first token p99, ms"] == pytest.approx(300)
    assert found["between p50, ms"] == pytest.approx(200)
    assert found["between p99, ms"] == pytest.approx(1200)
    assert found["CPU s/1,000 tokens"] == pytest.approx(2)


def test_a_trace_is_thinned_shortened_and_hurried(tmp_path: Path) -> None:
    rows = [f"2023-11-16 18:15:{second:02}.0000000,{80 * (second + 1)},{16 * (second + 1)}" for second in range(33)]
    (tmp_path / "trace.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    load = replay(tmp_path / "trace.csv", seed=0, requests=3)
    assert load.callers is None
    assert [request.at for request in load.requests] == [0.0, EVERY / 4, EVERY / 2]
    assert [request.max_tokens for request in load.requests] == [2, 18, 34]
    assert [len(request.prompt.split()) for request in load.requests] == [10, 90, 170]
    further = replay(tmp_path / "trace.csv", seed=1, requests=3)
    assert [request.max_tokens for request in further.requests] == [50, 66]


async def test_so_many_callers_ask_at_once_and_no_more() -> None:
    running, most, asked = 0, 0, []

    async def ask(request: Request) -> Heard:
        nonlocal running, most
        running += 1
        most = max(most, running)
        asked.append(request)
        await asyncio.sleep(0)
        running -= 1
        return Heard(0.0)

    load = steady(3, 0, 10, (2, 5))
    assert load == steady(3, 0, 10, (2, 5))
    await drive(load, ask)
    assert most == 3
    assert asked == load.requests


async def test_a_replay_asks_at_its_times() -> None:
    asked: list[int] = []

    async def ask(request: Request) -> Heard:
        asked.append(request.max_tokens)
        return Heard(0.0)

    await drive(Load(None, [Request("late", 1, at=0.05), Request("early", 2)]), ask)
    assert asked == [2, 1]
