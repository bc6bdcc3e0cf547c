"""Plaudit's SDK: chat with a policy that learns, and vote. Needs only grpcio, grpcio-status and protobuf."""

from plaudit_client.channel import tls
from plaudit_client.client import AsyncClient
from plaudit_client.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    PlauditError,
    ResourceExhausted,
    ServerError,
    Unauthenticated,
    Unavailable,
)
from plaudit_client.loop_types import (
    Approval,
    LearnerReport,
    Loop,
    PpoUpdate,
    ReleaseStep,
    RewardModelHead,
    RoundReport,
    VoteBucket,
)
from plaudit_client.reply import Reply
from plaudit_client.stream import Statement
from plaudit_client.types import (
    Durability,
    Erased,
    FinishReason,
    GateCheck,
    Message,
    Policies,
    Policy,
    RefusedStatement,
    Settled,
    Token,
    Usage,
)

__all__ = [
    "Approval",
    "AsyncClient",
    "Cancelled",
    "DeadlineExceeded",
    "Durability",
    "Erased",
    "FailedPrecondition",
    "FinishReason",
    "GateCheck",
    "InvalidRequest",
    "LearnerReport",
    "Loop",
    "Message",
    "NotFound",
    "PermissionDenied",
    "PlauditError",
    "Policies",
    "Policy",
    "PpoUpdate",
    "RefusedStatement",
    "ReleaseStep",
    "Reply",
    "ResourceExhausted",
    "RewardModelHead",
    "RoundReport",
    "ServerError",
    "Settled",
    "Statement",
    "Token",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "VoteBucket",
    "tls",
]
