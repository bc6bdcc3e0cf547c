"""From what a caller writes to the contract's messages, checked as far as only the caller's side can.

Ranges are the server's to judge (they are its configuration); what cannot even be put on the wire is refused here, with
the same exception and the same name of the field. So is a comment that is longer than the contract allows: a message
that is too large is refused by gRPC, which names no field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from plaudit.v1.chat_pb2 import Message as ProtoMessage
from plaudit.v1.chat_pb2 import Role, StreamChatRequest
from plaudit.v1.feedback_pb2 import SubmitFeedbackRequest, Thumb
from plaudit.v1.sampling_pb2 import SamplingParameters
from plaudit_client.errors import InvalidRequest
from plaudit_client.types import Message

_ROLES = {"system": Role.ROLE_SYSTEM, "user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT}
_LONGEST_COMMENT = 4096  # bytes; feedback.proto
_THUMBS = {"up": Thumb.THUMB_UP, "down": Thumb.THUMB_DOWN}


def chat_request(
    messages: str | Sequence[Message],
    *,
    temperature: float | None,
    top_p: float | None,
    max_tokens: int | None,
    seed: int | None,
    stop: str | Sequence[str],
    user_id: str,
    conversation_id: str,
    policy_version: str,
    logprobs: bool,
    unrecorded: bool,
) -> StreamChatRequest:
    """Raises InvalidRequest if a role is unknown, a number does not fit its field, or a text is not Unicode."""
    conversation: Sequence[Message] = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    stops = [stop] if isinstance(stop, str) else list(stop)
    return StreamChatRequest(
        messages=[_message(index, message) for index, message in enumerate(conversation)],
        sampling=SamplingParameters(
            temperature=temperature,
            top_p=top_p,
            max_tokens=None if max_tokens is None else _unsigned("sampling.max_tokens", max_tokens),
            seed=None if seed is None else _unsigned("sampling.seed", seed),
            stop=[text(f"sampling.stop[{index}]", stop) for index, stop in enumerate(stops)],
        ),
        user_id=text("user_id", user_id),
        conversation_id=text("conversation_id", conversation_id),
        policy_version=text("policy_version", policy_version),
        logprobs=logprobs,
        unrecorded=unrecorded,
    )


def feedback_request(
    receipt: str,
    *,
    thumb: Literal["up", "down"] | None,
    rating: int | None,
    preferred_over: str | None,
    comment: str | None,
    aspect: str,
    user_id: str,
    idempotency_key: str,
) -> SubmitFeedbackRequest:
    """Raises InvalidRequest unless exactly one verdict is given, if a comment is too long, and as `chat_request`."""
    verdicts = {"thumb": thumb, "rating": rating, "preferred_over": preferred_over, "comment": comment}
    given = [name for name, value in verdicts.items() if value is not None]
    if len(given) != 1:
        said = " and ".join(given) or "none"
        raise InvalidRequest("verdict", f"give exactly one of thumb, rating, preferred_over and comment, not {said}")
    if thumb is not None and thumb not in _THUMBS:
        raise InvalidRequest("thumb", f"is {thumb!r}; it must be 'up' or 'down'")
    request = SubmitFeedbackRequest(
        receipt=text("receipt", receipt),
        aspect=text("aspect", aspect),
        user_id=text("user_id", user_id),
        idempotency_key=text("idempotency_key", idempotency_key),
    )
    if thumb is not None:
        request.thumb = _THUMBS[thumb]
    elif rating is not None:
        request.rating = _unsigned("rating", rating)
    elif preferred_over is not None:
        request.preference.over_receipt = text("preference.over_receipt", preferred_over)
    elif comment is not None:
        request.comment = text("comment", comment)
        if (size := len(comment.encode())) > _LONGEST_COMMENT:
            raise InvalidRequest("comment", f"has {size:,} bytes; the most is {_LONGEST_COMMENT:,}")
    return request


def _message(index: int, message: Message) -> ProtoMessage:
    field = f"messages[{index}]"
    role = message.get("role")
    if role not in _ROLES:
        raise InvalidRequest(f"{field}.role", f"is {role!r}; it must be 'system', 'user' or 'assistant'")
    return ProtoMessage(role=_ROLES[role], content=text(f"{field}.content", message.get("content", "")))


def _unsigned(field: str, number: int) -> int:
    if not 0 <= number < 2**32:
        raise InvalidRequest(field, f"is {number}; it must be 0 to {2**32 - 1}")
    return number


def text(field: str, value: str) -> str:
    """The value. Raises InvalidRequest that names the field if it is not Unicode."""
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair; protobuf would not say which field
        raise InvalidRequest(field, "is not valid Unicode text") from None
    return value
