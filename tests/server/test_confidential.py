"""What people say, and who they are, stays out of logs, metrics and spans; user ids leave the server as keyed hashes
only.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from plaudit import callers
from plaudit.broker import free_port
from plaudit.callers import ApiKey, Callers
from plaudit.permission import Permission
from plaudit_client import AsyncClient, PlauditError, ServerError, Statement
from plaudit_server.prompts import ChatTemplate
from tests.fixtures_server import Deployment
from tests.fixtures_traces import Spans

USER, STRANGER = "ann-sesame@example.org", "bob-sesame@example.org"
PROMPT, COMMENT, CONVERSATION, CURSED = "prompt-sesame", "comment-sesame", "conversation-sesame", "cursed-sesame"


async def fails(call: Awaitable[object]) -> None:
    with suppress(PlauditError):
        await call


async def test_logs_metrics_and_files_name_nobody_and_quote_nothing(
    deployment: Deployment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    spans: Spans,
) -> None:
    caplog.set_level(logging.INFO)  # as the program itself logs
    secret, wrong, port = callers.new_secret(), callers.new_secret(), free_port()
    key = ApiKey(name="shop", sha256=callers.digest(secret), permissions=frozenset(Permission))
    callers.write(tmp_path / "callers.json", Callers(keys=(key,)))
    encode = ChatTemplate.encode

    def cursed(self: ChatTemplate, messages: Any) -> tuple[int, ...]:
        if CURSED in str(messages):
            raise RuntimeError(f"nobody foresaw {messages}")
        return encode(self, messages)

    monkeypatch.setattr(ChatTemplate, "encode", cursed)
    deployment.publish_endless("v1")  # its replies are long enough to be recognised
    said: list[str] = []
    options: dict[str, Any] = {"callers_file": tmp_path / "callers.json", "metrics_port": port, "outbox_limit": 8}
    options["traces"] = True
    async with (
        deployment.running(**options) as (public, control),
        AsyncClient(public, control=control, api_key=secret) as client,
        AsyncClient(public, control=control, api_key=wrong) as stranger,
    ):
        reply = client.chat(PROMPT, max_tokens=60, user_id=USER, conversation_id=CONVERSATION)
        said.append(await reply.read())
        assert len(said[0]) >= 20
        await reply.thumbs_up()
        await client.submit_feedback(reply.receipt, comment=COMMENT, user_id=USER)
        await client.retract_feedback(reply.receipt, user_id=USER)
        statements = [Statement(reply.receipt, thumb="down", user_id=user) for user in (USER, STRANGER)]
        assert [settled.refused async for settled in client.stream_feedback(statements)][-1] == 1
        await client.erase_user(USER, "asked")
        # All that goes wrong: at the door, in the request, in the server, and at the event log.
        await fails(stranger.chat(PROMPT, user_id=USER).read())
        await fails(stranger.erase_user(USER))
        await fails(client.chat(PROMPT, user_id=USER + "\x00").read())
        await fails(client.chat(PROMPT, user_id=USER, policy_version="v9").read())
        await fails(client.chat([{"role": "assistant", "content": PROMPT}], user_id=USER).read())
        await fails(client.submit_feedback(reply.receipt[:-4] + "AAAA", thumb="up", user_id=USER))
        await fails(client.submit_feedback(reply.receipt, thumb="up", user_id=STRANGER))
        await fails(client.submit_feedback(reply.receipt, comment=COMMENT, aspect=COMMENT))
        with pytest.raises(ServerError, match="internal error"):
            await client.chat(CURSED, user_id=USER).read()
        with closing(sqlite3.connect(deployment.root / "events.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # nobody can write to the log: the outbox fills, and then refuses
            for _ in range(10):
                await fails(client.chat(PROMPT, max_tokens=4, user_id=USER).read())
                await fails(client.submit_feedback(reply.receipt, comment=COMMENT, user_id=USER))

        def scrape() -> bytes:
            with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                content: bytes = answer.read()
                return content

        metrics = (await asyncio.to_thread(scrape)).decode()
    out, err = capfd.readouterr()
    fields = [str(value) for record in caplog.records for value in getattr(record, "fields", {}).values()]
    logs = "\n".join([caplog.text, out, err, *fields, *spans.words()])
    for expected in ("RuntimeError", "they go to the outbox", "served and not recorded"):
        assert expected in logs, "what went wrong is told"
    for expected in ("StreamChat OK", "StreamFeedback OK", "EraseUser OK", "UNAUTHENTICATED", "shop", "gen_ai."):
        assert expected in logs, "calls are told of, in lines and in spans"
    assert 'plaudit_calls_refused_total{reason="unauthenticated"} 2.0' in metrics
    secrets = [USER, STRANGER, PROMPT, COMMENT, CONVERSATION, CURSED, secret, wrong, reply.receipt, *said]
    for confidential in secrets:
        assert confidential not in logs
        assert confidential not in metrics
    assert deployment.pseudonym(USER) not in metrics
    assert deployment.pseudonym(USER) not in logs
    files = [file for file in deployment.root.rglob("*") if file.is_file()]
    assert len(files) > 4
    for file in files:
        content = await asyncio.to_thread(file.read_bytes)
        for confidential in (USER, STRANGER, secret, wrong):
            assert confidential.encode() not in content, file
    assert any(deployment.pseudonym(USER).encode() in file.read_bytes() for file in files)
