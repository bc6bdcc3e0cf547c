"""What docs/clients.md, the README and the docstrings show is run, as it stands there, against real servers."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shutil
import textwrap
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from plaudit.events import FEEDBACK, from_beginning, open_log
from plaudit.v1.events_pb2 import Feedback
from plaudit_client import AsyncClient, Client
from tests.fixtures_server import Deployment
from tests.fixtures_tls import Issue

ROOT = Path(__file__).parents[2]
NODE = ROOT / "clients/examples/node"
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/clients.md")}


def blocks(page: str, language: str) -> list[str]:
    """All of them, but those that the page itself says are not run in the tests."""
    found = re.findall(rf"^(<!-- not run .*-->\n)?```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [block for not_run, block in found if not not_run]


def example(kind: type) -> str:
    """The indented part of its docstring."""
    lines = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    return textwrap.dedent(next(part for part in lines if part.startswith("    ")))


EXAMPLES = {
    **{name: blocks(page, "python") for name, page in PAGES.items()},
    "AsyncClient": ["from plaudit_client import AsyncClient\n\n" + example(AsyncClient)],
    "Client": ["from plaudit_client import Client\n\n" + example(Client)],
}


@pytest.fixture
async def written(deployment: Deployment) -> AsyncIterator[dict[str, str]]:
    """What stands in the examples, and what is meant: two real servers, of which the first has a control plane."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(deployment.running("server-0"))
        second = await stack.enter_async_context(deployment.running("server-1"))
        yield {
            "127.0.0.1:50051": first.public,
            "127.0.0.1:51051": first.control,
            "127.0.0.1:50052": second.public,
        }


def recorded(deployment: Deployment) -> list[str | None]:
    with open_log(deployment.event_log) as log:
        records = [Feedback.FromString(entry.value) for entry in log.read(from_beginning(log, FEEDBACK))]
    return [record.WhichOneof("verdict") for record in records]


async def test_the_examples_run(
    written: dict[str, str],
    deployment: Deployment,
    tmp_path: Path,
    issue: Issue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    issue("chat.example.org")
    for page, parts in EXAMPLES.items():
        assert parts, page
        names: dict[str, Any] = {}  # a page is read from its top
        for part in parts:
            source = part
            for shown, meant in written.items():
                source = source.replace(shown, meant)
            code = compile(source, f"{page}: {part[:60]!r}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            async with asyncio.timeout(60):
                if code.co_flags & inspect.CO_COROUTINE:
                    await eval(code, names)  # noqa: S307
                else:
                    await asyncio.to_thread(exec, code, names)
        if "clicked" in names:  # the ten lines are only definitions; this is what they are for
            answered = await asyncio.to_thread(names["answer"], "Name a bird.", "ann")
            await asyncio.to_thread(names["clicked"], answered["receipt"], "down", "ann")
            await asyncio.to_thread(names["plaudit"].close)
    said = recorded(deployment)
    assert said.count("rating") == said.count("preferred_over") == said.count("retraction") == 1
    assert said.count("comment") == 2
    assert said.count("thumb") == 9


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on this machine")
@pytest.mark.skipif(not (NODE / "node_modules").exists(), reason="the packages of the example are not installed (make)")
async def test_node_chats_and_votes_by_reflection(written: dict[str, str], deployment: Deployment) -> None:
    address = written["127.0.0.1:50051"]
    process = await asyncio.create_subprocess_exec(
        "node", "chat.mjs", "Name three birds.", address, cwd=NODE, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert out.decode().endswith("\nDURABILITY_EVENT_LOG\n")
    assert len(out) > len("\nDURABILITY_EVENT_LOG\n")
    assert recorded(deployment) == ["thumb"]


def test_the_page_says_how_the_node_example_is_run() -> None:
    shown = "".join(blocks(PAGES["docs/clients.md"], "sh"))
    assert f"cd {NODE.relative_to(ROOT)}\nnpm ci\nnode chat.mjs" in shown
