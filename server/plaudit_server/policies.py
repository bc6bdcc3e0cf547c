"""PolicyService: operators look, promote and roll back. A step is one event, which all servers follow."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from plaudit.events import POLICIES, EventLog, EventLogUnavailable, Record
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
)
from plaudit_server.follower import Follower
from plaudit_server.refusal import Refusal, invalid
from plaudit_server.router import Router
from plaudit_server.validation import check_identifier

_FOLLOW_SECONDS = 30.0


class PolicyService(policy_pb2_grpc.PolicyServiceServicer):
    """Reads the fold, writes the log, and answers once this server has followed."""

    def __init__(self, event_log: EventLog, follower: Follower, router: Router) -> None:
        self._log = event_log
        self._follower = follower
        self._router = router

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
        if request.version in self._follower.failures:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"announced, but this server refuses it: {self._follower.failures[request.version]}",
            )
        return PromotePolicyResponse(policy=self._known(request.version))

    async def RollbackPolicy(
        self, request: RollbackPolicyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> RollbackPolicyResponse:
        """See policy.proto."""
        version = request.version or self._follower.releases.stable
        self._known(version)
        await self._step(version, PolicyState.POLICY_STATE_ROLLED_BACK, request.reason)
        if self._router.serving.name == version:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"announced, but this server can load nothing else: {self._follower.failures}",
            )
        return RollbackPolicyResponse(policy=self._known(version), serving_version=self._router.serving.name)

    def _known(self, version: str) -> Policy:
        if not version:
            raise invalid("version", "is missing; give a version, e.g. v1")
        policy = self._follower.releases.policy(version)
        if policy is None:
            known = ", ".join(self._follower.releases.versions())
            raise Refusal(
                grpc.StatusCode.NOT_FOUND, f"there is no {version[:32]!r}; there are {known}", field="version"
            )
        return policy

    async def _step(self, version: str, state: PolicyState.ValueType, reason: str) -> None:
        check_identifier("reason", reason, 1024)
        releases = self._follower.releases
        refusal = releases.refusal(version, state)
        if refusal:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, refusal)
        known = releases.event(version)
        event = PolicyEvent(version=version, schema_version=1, actor="operator", state=state)
        event.reason = reason or "by an operator"
        if known is not None:
            event.parent = known.parent
            event.reference = known.reference
            event.manifest_sha256 = known.manifest_sha256
            event.metrics.update(known.metrics)
            event.checks.extend(known.checks)
        event.time.GetCurrentTime()
        offset = releases.offset(version)
        try:
            await asyncio.to_thread(self._log.append, [Record(POLICIES, version, event.SerializeToString())])
            await self._follower.followed(version, offset, _FOLLOW_SECONDS)
        except EventLogUnavailable as error:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE, "the event log is away; nothing was changed for sure", retry_after=5.0
            ) from error
        except TimeoutError:
            raise Refusal(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"announced to all servers, but not followed here within {_FOLLOW_SECONDS:g} s",
            ) from None
