"""A caller's trace goes on through the gateway to the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from plaudit import tracing
from plaudit.v1 import chat_pb2
from plaudit_server.rpc import Addresses
from tests.clients.scripted import Context, Script, serving
from tests.fixtures_traces import Spans, name_of
from tests.gateway.conftest import gateway

TRACE = "0af7651916cd43dd8448eb211c80319c"
CHAT: dict[str, Any] = {"model": "plaudit", "messages": [{"role": "user", "content": "the secret word"}]}


class Listening(Script):
    """Notes whose span each call goes on from."""

    def __init__(self) -> None:
        super().__init__()
        self.parents: list[str] = []

    async def StreamChat(
        self, request: chat_pb2.StreamChatRequest, context: Context
    ) -> AsyncIterator[chat_pb2.StreamChatResponse]:
        self.parents += [str(value) for key, value in context.invocation_metadata() or () if key == "traceparent"]
        async for event in super().StreamChat(request, context):
            yield event


@pytest.mark.parametrize("stream", [False, True])
async def test_a_callers_trace_goes_on(stream: bool, spans: Spans) -> None:
    script = Listening()
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    async with serving(script) as address, gateway(Addresses(address, address), traces=True) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream}, headers=headers)
    assert answer.status_code == 200
    span = spans.one("HTTP")
    assert script.parents == [name_of(span)]
    assert tracing.trace_of(name_of(span)) == TRACE
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
    }
    assert "secret" not in " ".join(spans.words())


async def test_without_traces_there_are_none(spans: Spans) -> None:
    script = Listening()
    async with serving(script) as address, gateway(Addresses(address, address)) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert script.parents == []
    assert not spans.all()
