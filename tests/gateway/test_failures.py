"""What a server's failures become, before a reply has begun and in the middle of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import openai
import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk

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
