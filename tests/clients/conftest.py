"""A scripted server and a client of it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from plaudit_client import AsyncClient
from tests.clients.scripted import Script, serving


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


class Run(Protocol):
    """Runs the real `plaudit` command against the scripted server."""

    async def __call__(self, *arguments: str, stdin: str = "", server: str | None = None) -> Outcome: ...


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def address(script: Script) -> AsyncIterator[str]:
    async with serving(script) as where:
        yield where


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(address, timeout=10) as made:
        yield made


@pytest.fixture
async def once(address: str) -> AsyncIterator[AsyncClient]:
    """Tries nothing again and keeps nothing: what is refused is raised."""
    async with AsyncClient(address, timeout=10, max_retries=0, keep_feedback=0) as made:
        yield made


@pytest.fixture
def plaudit() -> Path:
    return Path(sys.executable).with_name("plaudit")


@pytest.fixture
def run(plaudit: Path, address: str) -> Run:
    async def execute(*arguments: str, stdin: str = "", server: str | None = None) -> Outcome:
        process = await asyncio.create_subprocess_exec(
            plaudit,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "PLAUDIT_SERVER": server or address,
                "PLAUDIT_CONTROL": server or address,
                "NO_COLOR": "1",
                "COLUMNS": "200",
            },
        )
        out, err = await process.communicate(stdin.encode())
        return Outcome(process.returncode or 0, out.decode(), err.decode())

    return execute
