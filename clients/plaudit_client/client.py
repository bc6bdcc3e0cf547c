"""The asynchronous client: one method for each thing that a caller can ask of a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import grpc

from plaudit.v1.chat_pb2_grpc import ChatServiceStub
from plaudit.v1.feedback_pb2 import StreamFeedbackRequest
from plaudit.v1.feedback_pb2_grpc import FeedbackServiceStub
from plaudit.v1.loop_pb2 import GetLoopRequest, WatchLoopRequest
from plaudit.v1.loop_pb2_grpc import LoopServiceStub
from plaudit.v1.policy_pb2 import (
    GetPolicyRequest,
    ListPoliciesRequest,
    PromotePolicyRequest,
    RollbackPolicyRequest,
    SetCanaryShareRequest,
    WatchPoliciesRequest,
)
from plaudit.v1.policy_pb2_grpc import PolicyServiceStub
from plaudit.v1.privacy_pb2 import EraseUserRequest
from plaudit.v1.privacy_pb2_grpc import PrivacyServiceStub
from plaudit_client.channel import Channel, metadata
from plaudit_client.kept import Kept, NotKept
from plaudit_client.loop_types import Loop
from plaudit_client.reply import Reply
from plaudit_client.requests import chat_request, text
from plaudit_client.retry import MAX_RETRIES
from plaudit_client.stream import Statement, stream
from plaudit_client.types import Durability, Erased, Flushed, Message, Policies, Policy, Settled


class AsyncClient:
    """Talks to Plaudit's servers. To be made inside a running event loop; `Client` is the same without one.

        async with AsyncClient("127.0.0.1:50051") as client:
            reply = client.chat("Name three birds.")
            async for text in reply:
                print(text, end="")
            await reply.thumbs_up()

    `address` is HOST:PORT; or several with commas between them, or `dns:///NAME:PORT`, all of whose addresses get their
    share (`servers.py`). Operators' calls (policies, the loop, `erase_user`) are at an address of their own, a server's
    control plane: give it as `address` to make only those, or as `control` beside it to make both kinds.

    Chats and watches that have not begun to answer, feedback, erasures, and calls that only read are tried again while
    servers cannot take them (`retry.py`); calls that promote, roll back or give shares are made once.
    Feedback that still cannot be sent is kept, and sent later (`kept.py`).
    """

    def __init__(
        self,
        address: str,
        *,
        control: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = MAX_RETRIES,
        keep_feedback: int = 1000,
        feedback_file: str | Path | None = None,
    ) -> None:
        """`credentials`: of `plaudit_client.tls`; None: no TLS.

        `api_key`: None: the environment variable PLAUDIT_API_KEY; empty: none.
        `timeout`: seconds for every call but chat, its retries included.
        `max_retries`: how often such a call is tried again; 0: never.
        `keep_feedback`: so many statements that cannot be sent are kept; 0: they raise, as do those past the limit.
        `feedback_file`: where they are kept, so that the next client with that file sends them; None: in memory.
        Raises RuntimeError if no event loop is running, InvalidRequest if an argument is wrong.
        """
        asyncio.get_running_loop()  # grpc.aio would bind to a loop of its own making, and fail later and stranger
        said = metadata(api_key)
        self._public = Channel(address, credentials, said, timeout, max_retries)
        self._control = self._public if control is None else Channel(control, credentials, said, timeout, max_retries)
        self._chat = ChatServiceStub(self._public.grpc)
        self._feedback = FeedbackServiceStub(self._public.grpc)
        self._policies = PolicyServiceStub(self._control.grpc)
        self._loop = LoopServiceStub(self._control.grpc)
        self._privacy = PrivacyServiceStub(self._control.grpc)
        self._owns = True
        self._kept: Kept = Kept(self._say, keep_feedback, feedback_file)

    @property
    def address(self) -> str:
        """Where chats and votes go."""
        return self._public.address

    @property
    def control(self) -> str:
        """Where operators' calls go."""
        return self._control.address

    def with_api_key(self, api_key: str) -> Self:
        """This client's connections for another caller: for programs that pass on the calls of many.

        It keeps no feedback, and closing it closes nothing. `api_key`: empty: none. Raises InvalidRequest.
        """
        said = metadata(api_key)
        other = copy(self)
        other._public = self._public.saying(said)
        other._control = other._public if self._control is self._public else self._control.saying(said)
        other._kept = NotKept(other._say, self._kept.turns)
        other._owns = False
        return other

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; replies still running are cancelled.

        Feedback that is kept in memory is sent, or lost, and that said, in up to 5 s; what is in a file stays there.
        """
        if not self._owns:
            return
        await self._kept.close()
        await self._public.close()
        await self._control.close()

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        user_id: str = "",
        conversation_id: str = "",
        policy_version: str = "",
        logprobs: bool = False,
        unrecorded: bool = False,
        timeout: float | None = None,
    ) -> Reply:
        """One reply to a conversation, or to one user's message given as a string; Reply says what reading it raises.

        What is None is the server's default. `unrecorded`: nothing is learnt from the reply, and it cannot be voted on.
        `timeout`: seconds for the whole reply, retries included; None: as long as it takes.
        Raises InvalidRequest at once for what cannot be sent at all.
        """
        request = chat_request(
            messages,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            seed=seed,
            stop=stop,
            user_id=user_id,
            conversation_id=conversation_id,
            policy_version=policy_version,
            logprobs=logprobs,
            unrecorded=unrecorded,
        )
        return Reply(self, self._public, self._chat.StreamChat, request, timeout)

    async def submit_feedback(
        self,
        receipt: str,
        *,
        thumb: Literal["up", "down"] | None = None,
        rating: int | None = None,
        preferred_over: str | None = None,
        comment: str | None = None,
        aspect: str = "",
        user_id: str = "",
        idempotency_key: str | None = None,
    ) -> Durability:
        """Say exactly one thing of the reply that `receipt` came with; returns where it is safe now.

        `preferred_over` is the receipt of the other, worse reply. While no server can take it, the statement is sent
        again a few times, then kept (PENDING) and sent later, always with the same idempotency key (its own, if none is
        given), so it counts once. Statements on one reply are sent one after another, in the order of the calls.
        Raises InvalidRequest (a forged receipt included), FailedPrecondition (an expired receipt), RequestTooLarge or
        ServerError; and if it is not kept, ResourceExhausted, Unavailable or DeadlineExceeded.
        """
        statement = Statement(
            receipt,
            thumb=thumb,
            rating=rating,
            preferred_over=preferred_over,
            comment=comment,
            aspect=aspect,
            user_id=user_id,
            idempotency_key=idempotency_key,
        )
        return await self._kept.submit(statement.request)

    async def retract_feedback(
        self, receipt: str, *, aspect: str = "", user_id: str = "", idempotency_key: str | None = None
    ) -> Durability:
        """Take back what this user said of one reply and aspect. Retried, kept, and raises, as `submit_feedback`."""
        statement = Statement(receipt, retraction=True, aspect=aspect, user_id=user_id, idempotency_key=idempotency_key)
        return await self._kept.submit(statement.request)

    @property
    def pending_feedback(self) -> int:
        """How many statements are kept here, because no server could take them yet."""
        return len(self._kept)

    async def flush_feedback(self, timeout: float = 30.0) -> Flushed:  # noqa: ASYNC109 - it is no failure
        """Send what is kept now, trying again for up to `timeout` seconds; tells what became of it. Raises nothing."""
        return await self._kept.flush(timeout)

    async def _say(self, statement: StreamFeedbackRequest) -> Durability:
        if statement.HasField("retract"):
            retracted = await self._public.insist(self._feedback.RetractFeedback, statement.retract)
            return Durability.from_proto(retracted.durability)
        submitted = await self._public.insist(self._feedback.SubmitFeedback, statement.submit)
        return Durability.from_proto(submitted.durability)

    def stream_feedback(self, statements: Iterable[Statement] | AsyncIterable[Statement]) -> AsyncGenerator[Settled]:
        """Say many things over one connection: for back-ends that forward what their users say.

        Yields what is settled whenever more of them are; the last one is the summary. A statement that is refused does
        not keep the others from being taken. If the connection breaks, the rest is sent again a few times, each with
        the same idempotency key. Nothing is kept for later: the caller has it.
        Raises ResourceExhausted, RequestTooLarge (it names the statement, which is to be left out), Unavailable or
        ServerError; what was settled stays so.

            async for settled in client.stream_feedback(statements):
                forget(settled.count)
        """
        return stream(self._public, self._feedback.StreamFeedback, statements)

    async def list_policies(self) -> Policies:
        """All policy versions, oldest first, and which of them answer. Raises Unavailable or ServerError."""
        response = await self._control.insist(self._policies.ListPolicies, ListPoliciesRequest())
        return Policies(
            policies=tuple(Policy.from_proto(policy) for policy in response.policies),
            serving_version=response.serving_version,
            loaded_versions=tuple(response.loaded_versions),
            failures=dict(response.failures),
        )

    async def get_policy(self, version: str) -> Policy:
        """One version. Raises NotFound if there is none of that name, Unavailable or ServerError."""
        request = GetPolicyRequest(version=text("version", version))
        response = await self._control.insist(self._policies.GetPolicy, request)
        return Policy.from_proto(response.policy)

    async def promote_policy(self, version: str, reason: str = "") -> Policy:
        """Make `version` stable on all servers.

        Raises NotFound, FailedPrecondition (the gate rejected it, or the server cannot load it), InvalidRequest,
        Unavailable or ServerError.
        """
        request = PromotePolicyRequest(version=text("version", version), reason=text("reason", reason))
        response = await self._control.call(self._policies.PromotePolicy, request)
        return Policy.from_proto(response.policy)

    async def rollback_policy(self, version: str = "", reason: str = "") -> tuple[Policy, str]:
        """Take `version` (empty: the stable one) out of service; returns it, and the version that serves instead.

        Raises NotFound, FailedPrecondition (v0, or never in service), InvalidRequest, Unavailable or ServerError.
        """
        request = RollbackPolicyRequest(version=text("version", version), reason=text("reason", reason))
        response = await self._control.call(self._policies.RollbackPolicy, request)
        return Policy.from_proto(response.policy), response.serving_version

    async def set_canary_share(self, version: str, share: float, reason: str = "") -> Policy:
        """Give `share` (0 to below 1) of conversations `version`, which is compared with the stable one from now on.

        Raises NotFound, FailedPrecondition (it is stable, retired or rejected, or the server cannot load it),
        InvalidRequest, Unavailable or ServerError.
        """
        request = SetCanaryShareRequest(version=text("version", version), share=share, reason=text("reason", reason))
        response = await self._control.call(self._policies.SetCanaryShare, request)
        return Policy.from_proto(response.policy)

    async def watch_policies(self) -> AsyncIterator[Policy]:
        """Every version as it is now, oldest first, then each whenever where it stands changes; without end.

        Raises ResourceExhausted (too many watch), Unavailable (the server stops, or the connection got too old: watch
        again) or ServerError.
        """
        async with aclosing(self._control.watch(self._policies.WatchPolicies, WatchPoliciesRequest())) as responses:
            async for response in responses:
                yield Policy.from_proto(response.policy)

    async def get_loop(self) -> Loop:
        """How learning goes: the learner, its rounds, the steps of every version. Raises Unavailable or ServerError.

        Needs the permission `observe`, where the server asks for callers.
        """
        response = await self._control.insist(self._loop.GetLoop, GetLoopRequest())
        return Loop.from_proto(response.loop)

    async def watch_loop(self) -> AsyncGenerator[Loop]:
        """The whole of it now, and again whenever something of it changes, at most once a second; without end.

        Raises as `watch_policies`.
        """
        async with aclosing(self._control.watch(self._loop.WatchLoop, WatchLoopRequest())) as responses:
            async for response in responses:
                yield Loop.from_proto(response.loop)

    async def erase_user(self, user_id: str, reason: str = "") -> Erased:
        """Forget everything that a user said, or was told, until now; the learner follows, and trains without it.

        `reason` is kept: it should name nobody. Tried again while the server cannot take it.
        Raises InvalidRequest, ResourceExhausted, Unavailable or ServerError.
        """
        request = EraseUserRequest(user_id=text("user_id", user_id), reason=text("reason", reason))
        response = await self._control.insist(self._privacy.EraseUser, request)
        return Erased.from_proto(response)

    async def healthy(self) -> bool:
        """Whether the server, or one of several, says that it serves (grpc.health.v1).

        Raises Unavailable or ServerError if none answers.
        """
        # HealthCheckRequest{} is no bytes; HealthCheckResponse{status: SERVING} is field 1, value 1. That does not
        # justify another dependency.
        check = self._public.grpc.unary_unary(
            "/grpc.health.v1.Health/Check", request_serializer=_as_is, response_deserializer=_as_is
        )
        return await self._public.any(check, b"", wanted=b"\x08\x01")


def _as_is(content: bytes) -> bytes:
    return content
