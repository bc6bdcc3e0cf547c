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
from plaudit_client.reply import Reply
from plaudit_client.stream import Statement
from plaudit_client.sync import Client, SyncReply
from plaudit_client.types import (
    Durability,
    Erased,
    FinishReason,
    Flushed,
    GateCheck,
    Message,
    Policies,
    Policy,
    RefusedFeedback,
    RefusedStatement,
    Settled,
    Token,
    Usage,
)

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Durability",
    "Erased",
    "FailedPrecondition",
    "FinishReason",
    "Flushed",
    "GateCheck",
    "InvalidRequest",
    "Message",
    "NotFound",
    "PermissionDenied",
    "PlauditError",
    "Policies",
    "Policy",
    "RefusedFeedback",
    "RefusedStatement",
    "Reply",
    "ResourceExhausted",
    "ServerError",
    "Settled",
    "Statement",
    "SyncReply",
    "Token",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "tls",
]
