"""What a server's failures become, before a reply has begun and in the middle of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import httpx
import openai
import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from plaudit_server.rpc import Addresses
from tests.clients.scripted import Failure, Script, serving
from tests.gateway.conftest import gateway
from tests.gateway.test_openai import HELLO


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def client(script: Script) -> AsyncIterator[AsyncOpenAI]:
    async with serving(script) as address, gateway(Addresses(address, address)) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="k" * 8, max_retries=0) as made:
            yield made


@pytest.mark.parametrize(
    ("code", "status", "named"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, 400, "failed_precondition"),
        (grpc.StatusCode.UNAUTHENTICATED, 401, "invalid_api_key"),
        (grpc.StatusCode.PERMISSION_DENIED, 403, "permission_denied"),
        (grpc.StatusCode.NOT_FOUND, 404, "not_found"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "rate_limit_exceeded"),
        (grpc.StatusCode.INTERNAL, 500, "internal"),
        (grpc.StatusCode.UNAVAILABLE, 503, "unavailable"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "timeout"),
    ],
    ids=lambda value: value.name if isinstance(value, grpc.StatusCode) else "",
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_each_code(
    script: Script, client: AsyncOpenAI, code: grpc.StatusCode, status: int, named: str, stream: bool
) -> None:
    script.failures.append(Failure(code))
    with pytest.raises(openai.APIStatusError, match="the server says why") as caught:
        await client.chat.completions.create(model="plaudit", messages=HELLO, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (status, named)


async def test_where_one_name_is_several_servers_the_next_one_is_asked(script: Script) -> None:
    async with serving(script) as address, gateway(Addresses(address, address), retries=1) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="k" * 8, max_retries=0) as client:
            script.failures.append(Failure(grpc.StatusCode.UNAVAILABLE, retry_after=0.01))
            answer = await client.chat.completions.create(model="plaudit", messages=HELLO)
    assert answer.choices[0].message.content == "HELLO "
    assert len(script.chats) == 2


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, openai.RateLimitError),
        (grpc.StatusCode.UNAVAILABLE, openai.InternalServerError),
    ],
)
async def test_when_to_come_back(
    script: Script, client: AsyncOpenAI, code: grpc.StatusCode, raised: type[openai.APIStatusError]
) -> None:
    script.failures.append(Failure(code, retry_after=0.25))
    with pytest.raises(raised) as caught:
        await client.chat.completions.create(model="plaudit", messages=HELLO)
    headers = caught.value.response.headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "250")
    script.failures.append(Failure(code, retry_after=0.01))
    answer = await client.with_options(max_retries=1).chat.completions.create(model="plaudit", messages=HELLO)
    assert answer.choices[0].message.content == "HELLO "


LONG: list[ChatCompletionMessageParam] = [{"role": "user", "content": "x" * (5 << 20)}]
"""More than gRPC takes: 4 MiB, where no server says otherwise."""


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_conversation_that_is_too_large_is_the_callers_to_shorten(stream: bool) -> None:
    """It is no limit that passes: whoever tries again is refused again."""
    async with serving(Script()) as address, gateway(Addresses(address, address), max_body_bytes=6 << 20) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="k" * 8, max_retries=0) as client:
            with pytest.raises(openai.BadRequestError, match="make it shorter") as caught:
                await client.chat.completions.create(model="plaudit", messages=LONG, stream=stream)
            assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            answer = await http.post("/v1/feedback", json={"receipt": "r" * (5 << 20), "thumb": "up"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


async def test_a_server_that_has_all_the_calls_it_takes_is_a_limit_that_passes(script: Script) -> None:
    """gRPC's own, which says no time either."""
    script.endless = True
    async with serving(script, calls=1) as address, gateway(Addresses(address, address)) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="k" * 8, max_retries=0) as client:
            async with await client.chat.completions.create(model="plaudit", messages=HELLO, stream=True) as stream:
                await anext(aiter(stream))
                with pytest.raises(openai.RateLimitError) as caught:
                    await client.chat.completions.create(model="plaudit", messages=HELLO)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"] == "1"


async def test_what_a_server_does_not_have_names_no_address(script: Script) -> None:
    async with serving(script) as address, gateway(Addresses(address, address)) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            answer = await http.get("/v1/loop")
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "the server does not have this service")


async def test_a_reply_that_breaks_off_says_so(script: Script, client: AsyncOpenAI) -> None:
    script.truncated = True
    stream = await client.chat.completions.create(model="plaudit", messages=HELLO, stream=True)
    pieces: list[str | None] = []
    with pytest.raises(openai.APIError, match="broke off"):
        await _read(stream, pieces)
    assert pieces == ["", "HELLO "]
    with pytest.raises(openai.InternalServerError, match="broke off"):
        await client.chat.completions.create(model="plaudit", messages=HELLO)


async def _read(stream: AsyncStream[ChatCompletionChunk], pieces: list[str | None]) -> None:
    async for chunk in stream:
        pieces += [chunk.choices[0].delta.content]


async def test_leaving_an_endless_reply_ends_it(script: Script, client: AsyncOpenAI) -> None:
    script.endless = True
    async with await client.chat.completions.create(model="plaudit", messages=HELLO, stream=True) as stream:
        async for _ in stream:
            break
    await script.freed.wait()
