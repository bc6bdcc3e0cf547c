"""What the SDK takes and gives: plain immutable values, so that nobody who uses it has to touch protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal, TypedDict

from plaudit.v1 import feedback_pb2, policy_pb2, privacy_pb2, sampling_pb2


class Message(TypedDict):
    """One turn of a conversation, as in OpenAI's API."""

    role: Literal["system", "user", "assistant"]
    content: str


class FinishReason(StrEnum):
    """Why a reply ended."""

    STOP = "stop"
    """The model ended it, or a stop string was met."""
    LENGTH = "length"
    """max_tokens were sampled."""
    CANCELLED = "cancelled"
    """The caller left."""
    ERROR = "error"
    """The engine failed in the middle of it."""

    @classmethod
    def from_proto(cls, reason: sampling_pb2.FinishReason.ValueType) -> FinishReason:
        """ERROR for a reason that this SDK does not know."""
        return _FINISH.get(reason, cls.ERROR)


class Durability(StrEnum):
    """Where an acknowledged vote is safe."""

    EVENT_LOG = "event log"
    OUTBOX = "outbox"
    """On the server's disk, because the event log is away; it follows by itself."""
    PENDING = "pending"
    """Not at a server yet: none could take it, so the client keeps it, and sends it later."""
    UNKNOWN = "unknown"

    @classmethod
    def from_proto(cls, durability: feedback_pb2.Durability.ValueType) -> Durability:
        """UNKNOWN for a place that this SDK does not know."""
        return _DURABILITY.get(durability, cls.UNKNOWN)


@dataclass(frozen=True, slots=True)
class RefusedStatement:
    """One of many statements that was refused for good."""

    index: int
    """Its place among them, the first being 0."""
    field: str
    reason: str
    """What would be right."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What has become of many statements so far."""

    count: int = 0
    """So many, from the first one on, are settled: each is durable, or refused for good."""
    in_event_log: int = 0
    in_outbox: int = 0
    """On a server's disk, because the event log is away; they follow by themselves."""
    refused: int = 0
    refusals: tuple[RefusedStatement, ...] = ()
    """Those refused since the last one; of each connection the first 100, the rest is only counted."""


@dataclass(frozen=True, slots=True)
class RefusedFeedback:
    """A statement that the client kept, and that a server then refused for good; an expired receipt, for instance."""

    receipt: str
    idempotency_key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Flushed:
    """What became of the feedback that the client kept, since this was asked last."""

    delivered: int
    pending: int
    """Still kept."""
    refused: tuple[RefusedFeedback, ...]
    """The last `keep_feedback` of them."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one reply."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Erased:
    """What a user said, or was told, is to be forgotten: durably written down, and followed by the learner."""

    until: datetime
    """What came up to this time; by the server's clock, in UTC."""
    durability: Durability

    @classmethod
    def from_proto(cls, response: privacy_pb2.EraseUserResponse) -> Erased:
        """As the server tells it."""
        return cls(response.erased_until.ToDatetime(tzinfo=UTC), Durability.from_proto(response.durability))


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token; only of replies that were asked for with `logprobs=True`."""

    id: int
    logprob: float
    """Natural logarithm, under the distribution really sampled from."""


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One thing that the gate looked at before a version was let through or rejected."""

    measure: str
    candidate: float
    """The version's own figure."""
    reference: float
    """What it was compared with: the parent's reward, and else the base model's figure."""
    bound: float
    upper: bool
    """Whether `bound` is the most allowed; if not, the least."""
    kept: bool


def state_word(state: policy_pb2.PolicyState.ValueType) -> str:
    """As `Policy.state` says it."""
    return policy_pb2.PolicyState.Name(state).removeprefix("POLICY_STATE_").lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy version."""

    version: str
    """`v0` is the base model."""
    parent: str
    state: str
    """candidate, canary, stable, retired, rejected or rolled back."""
    reason: str
    changed_at: datetime | None
    metrics: dict[str, float]
    """What was measured of it: at the gate, and as canary (`canary_…`)."""
    checks: tuple[GateCheck, ...]
    """What the gate looked at, in its order; empty for v0."""
    reference: str
    """What its KL is measured against and learning on it starts from: an instruction-tuned version, or `v0`."""
    share: float = 0.0
    """The share of conversations that get it, while it is the canary; else 0."""

    @classmethod
    def from_proto(cls, policy: policy_pb2.Policy) -> Policy:
        """As the server tells it."""
        return cls(
            version=policy.version,
            parent=policy.parent,
            state=state_word(policy.state),
            reason=policy.reason,
            changed_at=policy.changed_at.ToDatetime(tzinfo=UTC) if policy.HasField("changed_at") else None,
            metrics=dict(policy.metrics),
            checks=tuple(
                GateCheck(check.measure, check.candidate, check.reference, check.bound, check.upper, check.kept)
                for check in policy.checks
            ),
            reference=policy.reference,
            share=policy.share,
        )


@dataclass(frozen=True, slots=True)
class Policies:
    """All versions, and which of them answer."""

    policies: tuple[Policy, ...]
    """Oldest first."""
    serving_version: str
    """What this server gives new requests."""
    loaded_versions: tuple[str, ...]
    """What may be asked for with `policy_version`."""
    failures: dict[str, str]
    """Why a version is not served here though it was to be, by version."""


_FINISH = {
    sampling_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    sampling_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    sampling_pb2.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
    sampling_pb2.FINISH_REASON_ERROR: FinishReason.ERROR,
}
_DURABILITY = {
    feedback_pb2.DURABILITY_EVENT_LOG: Durability.EVENT_LOG,
    feedback_pb2.DURABILITY_OUTBOX: Durability.OUTBOX,
}
