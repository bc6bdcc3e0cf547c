"""`make bench-fuzz` in small, against a server in this process: nothing it is sent leaves anything behind."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from bench.fuzz import PLACES, Drive
from plaudit_server import app
from plaudit_server.config import ServerSettings
from plaudit_server.engine import Engine
from tests.fixtures_server import Deployment

INPUTS = 2500


async def test_bad_input_leaves_nothing_behind(
    deployment: Deployment, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[Engine] = []

    def make_engine(settings: ServerSettings, model: Path) -> Engine:
        engines.append(app_make_engine(settings, model))
        return engines[0]

    app_make_engine = app.make_engine
    monkeypatch.setattr(app, "make_engine", make_engine)
    places: dict[str, Any] = {"max_running": PLACES // 4, "max_waiting": PLACES * 3 // 4}
    async with deployment.server(max_tokens=8, default_max_tokens=4, **places) as address:
        drive = Drive([address], seed=0)
        await drive.begin()
        await drive.send(200)
        before = len(asyncio.all_tasks())
        await drive.send(INPUTS - 200)
        async with asyncio.timeout(30):
            while engines[0].running or len(asyncio.all_tasks()) > before:
                await asyncio.sleep(0.02)
        assert not drive.wrong
        assert all((await drive.as_before()).values())
    assert drive.answers["INVALID_ARGUMENT"] > INPUTS / 3
    assert drive.answers["OK"] > INPUTS / 10
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]
