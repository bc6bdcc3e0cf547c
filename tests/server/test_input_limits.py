"""Every limit on what comes in, at its edge: what is just allowed is taken, and one more is refused in words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from bench.hostile import PREFACE, frame
from plaudit.v1 import chat_pb2_grpc, feedback_pb2_grpc
from plaudit.v1.chat_pb2 import Message, Role, StreamChatRequest
from plaudit.v1.feedback_pb2 import RetractFeedbackRequest, SubmitFeedbackRequest, Thumb
from plaudit.v1.sampling_pb2 import SamplingParameters
from plaudit_client import AsyncClient
from plaudit_server import wire
from plaudit_server.refusal import Refusal
from plaudit_server.validation import check_identifier, check_text
from tests.fixtures_server import Deployment

CHAT, VOTE = "/plaudit.v1.ChatService/StreamChat", "/plaudit.v1.FeedbackService/SubmitFeedback"
EXHAUSTED, INVALID = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT
LIMIT = 32 * 2048  # bytes of text for the context of the tiny model


@pytest.fixture
async def address(deployment: Deployment) -> AsyncIterator[str]:
    async with deployment.server(max_context=2048) as address:
        yield address


def chat(*contents: str, **fields: Any) -> StreamChatRequest:
    roles = (Role.ROLE_USER, Role.ROLE_ASSISTANT) * len(contents)
    messages = [Message(role=role, content=text) for role, text in zip(roles, contents, strict=False)]
    return StreamChatRequest(
        messages=messages or [Message(role=Role.ROLE_USER, content="hello")],
        **{"sampling": SamplingParameters(max_tokens=1), **fields},
    )


def sampling(**fields: Any) -> StreamChatRequest:
    return chat(sampling=SamplingParameters(**{"max_tokens": 1, **fields}))


async def refused(address: str, request: StreamChatRequest) -> str | None:
    """`field: description` of the refusal; None if there is none."""
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            async for _ in chat_pb2_grpc.ChatServiceStub(channel).StreamChat(request):
                pass
        except grpc.aio.AioRpcError as raised:
            error = raised
        else:
            return None
    bad = BadRequest()
    assert error.code() == INVALID
    assert rpc_status.from_call(error).details[0].Unpack(bad)
    return f"{bad.field_violations[0].field}: {bad.field_violations[0].description}"


EDGES: list[tuple[StreamChatRequest, StreamChatRequest, str]] = [
    (sampling(temperature=2.0), sampling(temperature=2.0000002), "sampling.temperature: is 2"),
    (sampling(temperature=0.0), sampling(temperature=float("inf")), "sampling.temperature: is inf"),
    (sampling(temperature=0.01), sampling(temperature=0.0099), "sampling.temperature: is 0.0099"),
    (sampling(top_p=1.0), sampling(top_p=float("nan")), "sampling.top_p: is nan"),
    (sampling(top_p=1e-45), sampling(top_p=0.0), "sampling.top_p: is 0"),
    (sampling(max_tokens=256), sampling(max_tokens=257), "sampling.max_tokens: is 257; it must be 1 to 256"),
    (sampling(seed=0), sampling(max_tokens=0), "sampling.max_tokens: is 0"),
    (sampling(seed=2**32 - 1), sampling(max_tokens=2**32 - 1), "sampling.max_tokens: is 4294967295"),
    (sampling(stop=["z"] * 8), sampling(stop=["z"] * 9), "sampling.stop: has 9 strings; the most is 8"),
    (sampling(stop=["é" * 32]), sampling(stop=["é" * 32 + "z"]), "sampling.stop[0]: has 65 bytes"),
    (sampling(stop=["\n"]), sampling(stop=["z", "\0"]), "sampling.stop[1]: holds the control character U+0000"),
    (chat(user_id="é" * 128), chat(user_id="é" * 128 + "u"), "user_id: has 257 bytes; the most is 256"),
    (chat(conversation_id="c" * 256), chat(conversation_id="c" * 257), "conversation_id: has 257 bytes"),
    (chat(conversation_id="ש"), chat(conversation_id="a\u202eb"), "conversation_id: holds control characters"),
    (
        chat("a\t\v\f\r\n\x85b"),
        chat("a\x1b[2J"),
        "messages[0].content: holds the control character U+001B at character 1",
    ),
    (
        chat("שלום \u202b 👩\u200d👩"),
        chat("a", "b", "a\x7f"),
        "messages[2].content: holds the control character U+007F",
    ),
]


async def test_fields_at_their_edges(address: str) -> None:
    for allowed, beyond, words in EDGES:
        assert await refused(address, allowed) is None, words
        assert (await refused(address, beyond) or "").startswith(words)


async def test_messages_and_their_text(address: str) -> None:
    # Where it is just allowed, it is then too long for the context: one token a byte.
    assert "tokens; with max_tokens" in str(await refused(address, chat(*"ab" * 127, "c")))
    assert "messages: has 257 messages; the most is 256" in str(await refused(address, chat(*"ab" * 128, "c")))
    assert "tokens; with max_tokens" in str(await refused(address, chat("x" * LIMIT)))
    assert "the most is 65,536" in str(await refused(address, chat("x" * (LIMIT + 1))))
    assert "tokens; with max_tokens" in str(await refused(address, chat("x" * (LIMIT - 2), "y", "z")))
    assert "messages: have 65,537 bytes of text; for a context of 2,048 tokens 65,536 are read" in str(
        await refused(address, chat("x" * (LIMIT - 1), "y", "z"))
    )


async def answer(address: str, path: str, request: bytes, **options: Any) -> tuple[grpc.StatusCode, str]:
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            async for _ in cast(Any, channel.unary_stream(path))(request, timeout=30, **options):
                pass
        except grpc.aio.AioRpcError as error:
            return error.code(), str(error.details())
    return grpc.StatusCode.OK, ""


async def test_size_of_a_message_packed_or_not(address: str, deployment: Deployment) -> None:
    most = wire.most_message(deployment.settings(max_context=2048))
    for packed in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        code, words = await answer(address, VOTE, _unknown_field(most), compression=packed)
        assert (code, "receipt: is missing" in words) == (INVALID, True)
        code, words = await answer(address, VOTE, _unknown_field(most + 1), compression=packed)
        assert (code, "message larger than max" in words) == (EXHAUSTED, True)


def _unknown_field(size: int) -> bytes:
    """A request of so many bytes, all of them in a field that it does not have."""
    length = size - 5  # two of tag, three of length
    return b"\xfa\x01" + bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14]) + bytes(length)


async def test_metadata(address: str) -> None:
    received = 32 + len("x-long")  # what HTTP/2 adds to a pair

    async def one(size: int) -> grpc.StatusCode:
        code, _ = await answer(address, VOTE, b"", metadata=[("x-long", "v" * size)])
        return code

    assert await one(wire.METADATA_BYTES - received - 1000) == INVALID, "gRPC's own take some 600"
    assert await one(wire.METADATA_BYTES - received) == EXHAUSTED


async def test_bytes_that_are_no_request(address: str) -> None:
    deep = b"\x0b" * 101 + b"\x0c" * 101
    for raw, words in (
        (b"\xff" * 20, "Wire format was corrupt"),
        (b"\x0a\x02\xc3\x28", "bad UTF-8"),
        (b"\x0a\x03\xed\xa0\x80", "bad UTF-8"),  # a surrogate
        (deep, "corrupt"),
    ):
        for path in (VOTE, CHAT, "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", _REFLECTION):
            code, details = await answer(address, path, raw)
            assert code == INVALID, path
            if path == VOTE:
                assert details.startswith("the request cannot be read: ")
                assert words in details
    assert (await answer(address, VOTE, b"\x0b" * 90 + b"\x0c" * 90))[0] == INVALID, "receipt: is missing"


_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def test_connections(deployment: Deployment) -> None:
    async with deployment.server(max_connections=2) as address:
        host, _, port = address.rpartition(":")
        async with AsyncClient(address) as first:
            assert await first.healthy()
            _, second = await asyncio.open_connection(host, int(port))
            third, writer = await asyncio.open_connection(host, int(port))
            assert await asyncio.wait_for(third.read(), 30) == b"", "it is closed, and nothing was said"
            for each in (second, writer):
                each.close()
                await each.wait_closed()
            assert await first.healthy()


async def test_a_connection_that_says_nothing(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_HANDSHAKE_SECONDS", 1)
    async with deployment.server() as address:
        host, _, port = address.rpartition(":")
        for said in (b"", PREFACE[:10]):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            await asyncio.wait_for(reader.read(), 30)  # until it is closed
            writer.close()
            await writer.wait_closed()


async def test_calls_of_one_connection(address: str) -> None:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE + frame(4, 0, 0, b""))
    head = await reader.readexactly(9)
    settings = await reader.readexactly(int.from_bytes(head[:3]))
    told = {settings[at : at + 2]: int.from_bytes(settings[at + 2 : at + 6]) for at in range(0, len(settings), 6)}
    assert told[b"\0\3"] == wire.CALLS_A_CONNECTION, "MAX_CONCURRENT_STREAMS, which gRPC sees to"
    writer.close()
    await writer.wait_closed()


@pytest.fixture
async def receipt(address: str) -> str:
    async with AsyncClient(address) as client:
        reply = client.chat("hello", max_tokens=2)
        await reply.read()
    return reply.receipt


async def test_votes_at_their_edges(address: str, receipt: str) -> None:
    edges: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"rating": 1}, {"rating": 0}, "rating"),
        ({"rating": 5}, {"rating": 6}, "rating"),
        ({"comment": "c" * 4096}, {"comment": "c" * 4097}, "comment"),
        ({"comment": "a\nb"}, {"comment": "a\x1bb"}, "comment"),
        ({"idempotency_key": "k" * 128}, {"idempotency_key": "k" * 129}, "idempotency_key"),
        ({"user_id": "u" * 256}, {"user_id": "u" * 257}, "user_id"),
        ({"aspect": "politeness"}, {"aspect": "a" * 100_000}, "aspect"),
        ({}, {"receipt": receipt + "="}, "receipt"),
        ({}, {"receipt": "x" * 2048}, "receipt"),
        ({}, {"receipt": "x" * 2049}, "receipt"),
    ]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
        for allowed, beyond, field in edges:
            await stub.SubmitFeedback(_vote(receipt, allowed))
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.SubmitFeedback(_vote(receipt, beyond))
            assert error.value.code() == INVALID
            assert str(error.value.details()).startswith(f"{field}: ")
            assert len(str(error.value.details())) < 300
        with pytest.raises(grpc.aio.AioRpcError, match="idempotency_key: has 129 bytes"):
            await stub.RetractFeedback(RetractFeedbackRequest(receipt=receipt, idempotency_key="k" * 129))


def _vote(receipt: str, fields: dict[str, Any]) -> SubmitFeedbackRequest:
    verdict = {} if {"rating", "comment"} & fields.keys() else {"thumb": Thumb.THUMB_UP}
    return SubmitFeedbackRequest(**{"receipt": receipt, **verdict, **fields})


@given(st.text(max_size=300))
def test_whatever_the_text_it_is_taken_or_refused_in_words(text: str) -> None:
    def tried(check: Callable[..., object], most: int) -> Iterator[str]:
        try:
            check("field", text, most)
        except Refusal as refusal:
            yield refusal.message

    for words in (*tried(check_text, 256), *tried(check_identifier, 256)):
        assert words.isprintable()
    if not list(tried(check_identifier, 256)):
        assert "\n" not in text
        assert "\x1b" not in text
