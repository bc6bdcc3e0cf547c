"""PolicyService: operators look, promote, roll back, set a share. A step is one event, which all servers follow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import grpc

from plaudit import logs, tracing
from plaudit.events import POLICIES, EventLog, EventLogUnavailable, Record
from plaudit.releases import CANARY_METRICS, Releases, number, word
from plaudit.v1 import policy_pb2_grpc
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import (
    GetPolicyRequest,
    GetPolicyResponse,
    ListPoliciesRequest,
    ListPoliciesResponse,
    Policy,
    PolicyState,
    PromotePolicyRequest,
    PromotePolicyResponse,
    RollbackPolicyRequest,
    RollbackPolicyResponse,
    SetCanaryShareRequest,
    SetCanaryShareResponse,
    WatchPoliciesRequest,
    WatchPoliciesResponse,
)
from plaudit_server import caller, calls
from plaudit_server.follower import Follower
from plaudit_server.refusal import Refusal, invalid
from plaudit_server.router import Router
from plaudit_server.validation import check_identifier
from plaudit_server.watchers import stopping, watchers

log = logging.getLogger(__name__)

_FOLLOW_SECONDS = 20.0  # less than the SDK waits, so that its user is told more than that time is over
_QUOTED = 10  # versions in a message: it goes into trailers, and gRPC refuses those that are long
_QUOTED_CHARS = 100  # of what is said of each


class PolicyService(policy_pb2_grpc.PolicyServiceServicer):
    """Reads the fold, writes the log, and answers once this server has followed."""

    def __init__(self, event_log: EventLog, follower: Follower, router: Router, max_watchers: int) -> None:
        self._log = event_log
        self._follower = follower
        self._router = router
        self._watchers = watchers(max_watchers, instead="ListPolicies")
        self._stopping = False

    async def ListPolicies(
        self, request: ListPoliciesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListPoliciesResponse:
        """See policy.proto."""
        releases = self._follower.releases
        policies = [releases.policy(version) for version in releases.versions()]
        return ListPoliciesResponse(
            policies=[policy for policy in policies if policy is not None],
            serving_version=self._router.serving.name,
            loaded_versions=list(self._router.loaded),
            failures=self._follower.failures,
        )

    async def GetPolicy(
        self, request: GetPolicyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GetPolicyResponse:
        """See policy.proto."""
        return GetPolicyResponse(policy=self._known(request.version))

    async def PromotePolicy(
        self, request: PromotePolicyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> PromotePolicyResponse:
        """See policy.proto."""
        self._known(request.version)
        await self._step(request.version, PolicyState.POLICY_STATE_STABLE, request.reason)
        self._loadable(request.version)
        return PromotePolicyResponse(policy=self._known(request.version))

    async def RollbackPolicy(
        self, request: RollbackPolicyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> RollbackPolicyResponse:
        """See policy.proto."""
        version = request.version or self._follower.releases.stable
        self._known(version)
        await self._step(version, PolicyState.POLICY_STATE_ROLLED_BACK, request.reason)
        if self._router.serving.name == version:
            failures = self._follower.failures
            why = _newest([f"{name}: {failures[name][:_QUOTED_CHARS]}" for name in sorted(failures, key=number)])
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION, f"announced, but this server can load nothing else: {why}"
            )
        return RollbackPolicyResponse(policy=self._known(version), serving_version=self._router.serving.name)

    async def SetCanaryShare(
        self, request: SetCanaryShareRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> SetCanaryShareResponse:
        """See policy.proto."""
        self._known(request.version)
        if not 0 <= request.share < 1:  # nor NaN
            raise invalid(
                "share", f"is {request.share:g}; give 0 to below 1, e.g. 0.1, or promote the version for everybody"
            )
        await self._step(request.version, PolicyState.POLICY_STATE_CANARY, request.reason, share=request.share)
        self._loadable(request.version)
        return SetCanaryShareResponse(policy=self._known(request.version))

    async def WatchPolicies(  # type: ignore[override]  # a coroutine that writes, as ChatService.StreamChat
        self, request: WatchPoliciesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See policy.proto."""
        with self._watchers.one_more():
            await self._watch(context)

    async def _watch(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        shown: dict[str, Policy] = {}
        seen: tuple[Releases, int] | None = None
        while not self._stopping:
            releases = self._follower.releases  # another one where the log is another
            # It moves every second, changed or not; all versions are many, and all streams would wait.
            before, seen = seen, (releases, releases.changes)
            for version in releases.versions() if seen != before else ():
                policy = releases.policy(version)
                if policy is not None and shown.get(version) != policy:
                    shown[version] = policy
                    await context.write(WatchPoliciesResponse(policy=policy))
            await self._follower.moved()
        raise stopping()

    async def stop(self) -> None:
        """End the watches."""
        self._stopping = True
        await self._follower.wake()

    def _loadable(self, version: str) -> None:
        if version in self._follower.failures:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"announced, but this server refuses it: {self._follower.failures[version]}",
            )

    def _known(self, version: str) -> Policy:
        if not version:
            raise invalid("version", "is missing; give a version, e.g. v1")
        policy = self._follower.releases.policy(version)
        if policy is None:
            known = _newest(self._follower.releases.versions())
            raise Refusal(
                grpc.StatusCode.NOT_FOUND, f"there is no {version[:32]!r}; there are {known}", field="version"
            )
        return policy

    async def _step(self, version: str, state: PolicyState.ValueType, reason: str, *, share: float = 0.0) -> None:
        check_identifier("reason", reason, 1024)
        releases = self._follower.releases
        refusal = releases.refusal(version, state)
        if refusal:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, refusal)
        known = releases.event(version)
        event = PolicyEvent(version=version, schema_version=1, actor="operator", state=state, share=share)
        event.reason = reason or f"by {caller.current.get().name or 'an operator'}"
        if known is not None:
            event.parent = known.parent
            event.reference = known.reference
            event.manifest_sha256 = known.manifest_sha256
            # A share set by hand begins a comparison of its own.
            anew = CANARY_METRICS if state == PolicyState.POLICY_STATE_CANARY else ()
            event.metrics.update((name, v) for name, v in known.metrics.items() if not name.startswith(anew))
            event.checks.extend(known.checks)
            tracing.current().link(known.traceparent)
            event.traceparent = known.traceparent  # where this call is not traced
        event.traceparent = tracing.traceparent() or event.traceparent
        calls.current.get().policy_version = version
        event.time.GetCurrentTime()
        offset = releases.offset(version)
        try:
            await asyncio.to_thread(self._log.append, [Record(POLICIES, version, event.SerializeToString())])
            stands = word(state)
            told = logs.fields(step=stands, policy_version=version, actor="operator", caller=caller.current.get().name)
            log.info("an operator says that %s is %s: %s", version, stands, event.reason, extra=told)
            await self._follower.followed(version, offset, _FOLLOW_SECONDS)
        except EventLogUnavailable as error:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE, "the event log is away; nothing was changed for sure", retry_after=5.0
            ) from error
        except TimeoutError:
            raise Refusal(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"{version} is announced as {word(state)} to all servers, but not followed here within "
                f"{_FOLLOW_SECONDS:g} s",
            ) from None


def _newest(said: Sequence[str]) -> str:
    """What is said of the newest versions, oldest first as given, and how many more there are."""
    older = len(said) - _QUOTED
    return ", ".join(said[-_QUOTED:]) + (f" … and {older:,} older" if older > 0 else "")
