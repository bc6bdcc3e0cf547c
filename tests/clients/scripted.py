"""A server that does as a test says, for what a real one does too seldom: errors, deaths, versions that change on cue.

The loop itself is tested against the real server, elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from plaudit.v1 import chat_pb2, feedback_pb2, policy_pb2, sampling_pb2
from plaudit.v1.chat_pb2_grpc import ChatServiceServicer, add_ChatServiceServicer_to_server
from plaudit.v1.feedback_pb2_grpc import FeedbackServiceServicer, add_FeedbackServiceServicer_to_server
from plaudit.v1.loop_pb2_grpc import LoopServiceServicer, add_LoopServiceServicer_to_server
from plaudit.v1.policy_pb2_grpc import PolicyServiceServicer, add_PolicyServiceServicer_to_server

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Failure:
    """What an rpc answers instead of a reply."""

    code: grpc.StatusCode
    message: str = "the server says why"
    violations: tuple[tuple[str, str], ...] = ()
    retry_after: float | None = None


async def fail(context: Context, failure: Failure) -> NoReturn:
    details = []
    if failure.violations:
        bad_request = error_details_pb2.BadRequest()
        for name, description in failure.violations:
            bad_request.field_violations.add(field=name, description=description)
        details.append(_pack(bad_request))
    if failure.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(failure.retry_after * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    code = code_pb2.Code.Value(failure.code.name)
    status = status_pb2.Status(code=code, message=failure.message, details=details)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status raises")


@dataclass
class Script(ChatServiceServicer, FeedbackServiceServicer, PolicyServiceServicer):
    """What to answer, and what was asked. A reply says what the user said last, in capitals, word by word."""

    version: str = "v0"
    replies: Iterable[str] | None = None
    """What it says instead, in turn."""
    opens: bool = True
    """It says at once that a stream of feedback may begin."""
    endless: bool = False
    """Replies go on until they are cancelled."""
    truncated: bool = False
    """The stream ends without `finished`."""
    breaks_after: int | None = None
    """The next reply ends with UNAVAILABLE after so many words."""
    failures: list[Failure] = field(default_factory=list)
    """Each is answered once, in turn, before anything else."""
    canary: float = 0.0
    """The share of v2, which is on trial; 0: there is no v2."""
    votes_per_version: int = 0
    """After so many votes the next version serves; 0: never."""
    chats: list[chat_pb2.StreamChatRequest] = field(default_factory=list)
    feedback: list[feedback_pb2.SubmitFeedbackRequest] = field(default_factory=list)
    retractions: list[feedback_pb2.RetractFeedbackRequest] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    streaming: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an endless reply is on its way."""
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a stream was left by its reader."""

    async def _fail_if_told(self, context: Context) -> None:
        if self.failures:
            await fail(context, self.failures.pop(0))

    async def StreamChat(
        self, request: chat_pb2.StreamChatRequest, context: Context
    ) -> AsyncIterator[chat_pb2.StreamChatResponse]:
        self.chats.append(request)
        await self._fail_if_told(context)
        number = len(self.chats)
        version = request.policy_version or self.version
        text = next(iter(self.replies)) if self.replies is not None else request.messages[-1].content.upper()
        yield chat_pb2.StreamChatResponse(
            started=chat_pb2.Started(
                receipt=f"receipt-{number}", policy_version=version, response_id=f"response-{number}"
            )
        )
        try:
            for index, word in enumerate(text.split(" ")):
                if index == self.breaks_after:
                    self.breaks_after = None
                    await fail(context, Failure(grpc.StatusCode.UNAVAILABLE))
                yield _delta(word + " ")
            while self.endless:
                yield _delta("more ")
                self.streaming.set()
                await asyncio.sleep(0.01)
        finally:
            if self.endless:
                self.freed.set()
        if not self.truncated:
            finished = chat_pb2.Finished(
                finish_reason=sampling_pb2.FINISH_REASON_STOP, prompt_tokens=7, completion_tokens=3
            )
            yield chat_pb2.StreamChatResponse(finished=finished)

    async def SubmitFeedback(
        self, request: feedback_pb2.SubmitFeedbackRequest, context: Context
    ) -> feedback_pb2.SubmitFeedbackResponse:
        self.feedback.append(request)
        await self._fail_if_told(context)
        if self.votes_per_version and len(self.feedback) % self.votes_per_version == 0:
            self.version = f"v{int(self.version[1:]) + 1}"
        return feedback_pb2.SubmitFeedbackResponse(durability=feedback_pb2.DURABILITY_EVENT_LOG)

    async def RetractFeedback(
        self, request: feedback_pb2.RetractFeedbackRequest, context: Context
    ) -> feedback_pb2.RetractFeedbackResponse:
        self.retractions.append(request)
        await self._fail_if_told(context)
        return feedback_pb2.RetractFeedbackResponse(durability=feedback_pb2.DURABILITY_OUTBOX)

    async def StreamFeedback(
        self, request_iterator: AsyncIterator[feedback_pb2.StreamFeedbackRequest], context: Context
    ) -> AsyncIterator[feedback_pb2.StreamFeedbackResponse]:
        """Of each connection one statement is settled before it fails, if it is to."""
        settled = 0
        if self.opens:
            await context.send_initial_metadata(())
        async for request in request_iterator:
            if settled:
                await self._fail_if_told(context)
            self.feedback.append(request.submit)
            settled += 1
            yield feedback_pb2.StreamFeedbackResponse(settled=settled, in_event_log=settled)

    def _policy(self, version: str, state: policy_pb2.PolicyState.ValueType) -> policy_pb2.Policy:
        policy = policy_pb2.Policy(version=version, state=state, reason="because [it] could", metrics={"kl": 0.5})
        policy.changed_at.FromJsonString("2026-11-23T12:00:00Z")
        policy.checks.add(measure="reward", candidate=0.25, reference=0.125, bound=0.2, upper=False, kept=True)
        policy.checks.add(measure="longer", candidate=80.5, reference=50.0, bound=75.0, upper=True, kept=False)
        return policy

    async def ListPolicies(
        self, request: policy_pb2.ListPoliciesRequest, context: Context
    ) -> policy_pb2.ListPoliciesResponse:
        await self._fail_if_told(context)
        base = policy_pb2.Policy(version="v0", state=policy_pb2.POLICY_STATE_RETIRED)
        newest = self._policy("v1", policy_pb2.POLICY_STATE_STABLE)
        policies = [base, newest, *([self._canary(self.canary)] if self.canary else [])]
        return policy_pb2.ListPoliciesResponse(
            policies=policies, serving_version=self.version, loaded_versions=["v0", "v1"]
        )

    async def GetPolicy(self, request: policy_pb2.GetPolicyRequest, context: Context) -> policy_pb2.GetPolicyResponse:
        await self._fail_if_told(context)
        if request.version == "v2" and self.canary:
            return policy_pb2.GetPolicyResponse(policy=self._canary(self.canary))
        if request.version != "v1":
            await fail(context, Failure(grpc.StatusCode.NOT_FOUND, f"there is no version {request.version}"))
        return policy_pb2.GetPolicyResponse(policy=self._policy("v1", policy_pb2.POLICY_STATE_STABLE))

    async def PromotePolicy(
        self, request: policy_pb2.PromotePolicyRequest, context: Context
    ) -> policy_pb2.PromotePolicyResponse:
        self.reasons.append(request.reason)
        await self._fail_if_told(context)
        if request.version != "v1":
            failure = Failure(grpc.StatusCode.FAILED_PRECONDITION, f"{request.version} is rejected")
            await fail(context, failure)
        return policy_pb2.PromotePolicyResponse(policy=self._policy("v1", policy_pb2.POLICY_STATE_STABLE))

    async def RollbackPolicy(
        self, request: policy_pb2.RollbackPolicyRequest, context: Context
    ) -> policy_pb2.RollbackPolicyResponse:
        self.reasons.append(request.reason)
        policy = self._policy(request.version or "v1", policy_pb2.POLICY_STATE_ROLLED_BACK)
        return policy_pb2.RollbackPolicyResponse(policy=policy, serving_version="v0")

    def _canary(self, share: float) -> policy_pb2.Policy:
        policy = self._policy("v2", policy_pb2.POLICY_STATE_CANARY)
        policy.share = share
        tally = {"approval": 0.5, "votes": 32, "stable_approval": 0.25, "stable_votes": 300}
        policy.metrics.update({f"canary_{name}": float(figure) for name, figure in tally.items()})
        return policy

    async def SetCanaryShare(
        self, request: policy_pb2.SetCanaryShareRequest, context: Context
    ) -> policy_pb2.SetCanaryShareResponse:
        self.reasons.append(request.reason)
        if not 0 <= request.share < 1:
            violation = ("share", "give 0 to below 1")
            await fail(context, Failure(grpc.StatusCode.INVALID_ARGUMENT, "share: give 0 to below 1", (violation,)))
        return policy_pb2.SetCanaryShareResponse(policy=self._canary(request.share))

    async def WatchPolicies(
        self, request: policy_pb2.WatchPoliciesRequest, context: Context
    ) -> AsyncIterator[policy_pb2.WatchPoliciesResponse]:
        await self._fail_if_told(context)
        yield policy_pb2.WatchPoliciesResponse(policy=self._policy("v1", policy_pb2.POLICY_STATE_STABLE))
        yield policy_pb2.WatchPoliciesResponse(policy=self._canary(0.1))
        await fail(context, Failure(grpc.StatusCode.UNAVAILABLE, "this server is stopping"))


@asynccontextmanager
async def serving(script: Script, *, healthy: bool = True, calls: int | None = None) -> AsyncIterator[str]:
    """The address at which `script` answers, so many calls at once; None: without a limit."""
    server = grpc.aio.server(maximum_concurrent_rpcs=calls)
    add_ChatServiceServicer_to_server(script, server)
    add_FeedbackServiceServicer_to_server(script, server)
    add_PolicyServiceServicer_to_server(script, server)
    if isinstance(script, LoopServiceServicer):
        add_LoopServiceServicer_to_server(script, server)
    servicer = health.aio.HealthServicer()
    status = health_pb2.HealthCheckResponse.SERVING if healthy else health_pb2.HealthCheckResponse.NOT_SERVING
    await servicer.set("", status)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=0)


def _delta(text: str) -> chat_pb2.StreamChatResponse:
    return chat_pb2.StreamChatResponse(delta=chat_pb2.Delta(text=text, token_ids=[5], logprobs=[-0.5]))


def _pack(message: error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
