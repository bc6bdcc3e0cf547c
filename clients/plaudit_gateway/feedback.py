"""POST /v1/feedback: one statement about one reply, or its retraction."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from plaudit_client import AsyncClient, PlauditError
from plaudit_gateway.chat_request import Strict
from plaudit_gateway.errors import Wrong, from_client

_NAMES = {"preference.over_receipt": "preferred_over", "user_id": "user", "verdict": ""}
_KINDS = ("thumb", "rating", "preferred_over", "comment", "retract")


class Statement(Strict):
    """What all statements have."""

    receipt: Annotated[str, Field(min_length=1)]
    """That came with the reply."""
    aspect: str = ""
    """What of the reply is meant, one of the deployment's aspects; empty: the first of them."""
    user: str = ""
    """Who says it, at most 256 bytes; empty: whoever holds the receipt."""
    idempotency_key: str = ""
    """Made by the client, new for each statement and the same for each retry of it, at most 128 bytes."""


class Thumb(Statement):
    """Good or bad."""

    thumb: Literal["up", "down"]


class Rating(Statement):
    """1 (worst) to 5 (best)."""

    rating: Annotated[int, Field(ge=1, le=5)]


class Preference(Statement):
    """The reply of `receipt` was better than another."""

    preferred_over: Annotated[str, Field(min_length=1)]
    """The receipt of the other, worse reply."""


class Comment(Statement):
    """In words."""

    comment: Annotated[str, Field(min_length=1)]
    """1 to 4,096 bytes."""


class Retraction(Statement):
    """Takes back what this user said of this reply and aspect."""

    retract: Literal[True]


def _kind(body: Any) -> str | None:
    """None unless exactly one thing is said. In parentheses: what stands so in an error's path is no field."""
    said = [kind for kind in _KINDS if isinstance(body, dict) and kind in body]
    return f"({said[0]})" if len(said) == 1 else None


Feedback: TypeAlias = Annotated[
    Annotated[Thumb, Tag("(thumb)")]
    | Annotated[Rating, Tag("(rating)")]
    | Annotated[Preference, Tag("(preferred_over)")]
    | Annotated[Comment, Tag("(comment)")]
    | Annotated[Retraction, Tag("(retract)")],
    Discriminator(
        _kind,
        custom_error_type="verdict",
        custom_error_message=f"give a JSON object with exactly one of {', '.join(_KINDS)}",
    ),
]


class FeedbackAnswer(Strict):
    """It is durable."""

    durability: Literal["event_log", "outbox"]
    """`outbox`: on the server's disk, because the event log is away; it follows by itself."""


async def submit(body: Feedback, client: AsyncClient) -> dict[str, str]:
    """Where it is safe now. Raises Wrong."""
    common: dict[str, Any] = {
        "aspect": body.aspect,
        "user_id": body.user,
        "idempotency_key": body.idempotency_key or None,
    }
    try:
        match body:
            case Thumb():
                durability = await client.submit_feedback(body.receipt, thumb=body.thumb, **common)
            case Rating():
                durability = await client.submit_feedback(body.receipt, rating=body.rating, **common)
            case Preference():
                better = body.preferred_over
                durability = await client.submit_feedback(body.receipt, preferred_over=better, **common)
            case Comment():
                durability = await client.submit_feedback(body.receipt, comment=body.comment, **common)
            case Retraction():
                durability = await client.retract_feedback(body.receipt, **common)
    except PlauditError as error:
        raise from_client(error, _NAMES) from None
    where = durability.value.replace(" ", "_")
    if where not in ("event_log", "outbox"):
        raise Wrong(500, f"the server took it, but where to is not known here: {where}", code="internal")
    return {"durability": where}
