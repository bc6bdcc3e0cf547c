"""`plaudit vote`: say something of one reply, whoever showed it."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plaudit_cli.common import DEFAULT_SERVER, Server, connect, failures

if TYPE_CHECKING:
    from plaudit_client import Durability


class Thumb(StrEnum):
    """What one can say in one word."""

    UP = "up"
    DOWN = "down"


def vote(
    receipt: Annotated[str, typer.Argument(help="The receipt that came with the reply.")],
    thumb: Annotated[Thumb | None, typer.Argument(help="Good or bad.", show_default=False)] = None,
    *,
    rating: Annotated[int | None, typer.Option(min=1, max=5, help="1 (worst) to 5 (best), instead of a thumb.")] = None,
    retract: Annotated[bool, typer.Option("--retract", help="Take back what was said.")] = False,
    comment: Annotated[str | None, typer.Option(help="In words; alone, or beside a thumb or a rating.")] = None,
    aspect: Annotated[str, typer.Option(help="What of the reply is meant; left out: the server's first aspect.")] = "",
    user: Annotated[str, typer.Option(help="Who votes; needed if the reply was given to a named user.")] = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Vote on a reply by its receipt."""
    if retract and (thumb or rating or comment is not None):
        raise typer.BadParameter("--retract stands alone: it takes back all that was said of the aspect")
    if thumb and rating:
        raise typer.BadParameter("give a thumb or --rating, not both: the later replaces the earlier")
    if not (retract or thumb or rating or comment is not None):
        raise typer.BadParameter("say what you think: up, down, --rating N, --comment TEXT or --retract")
    with failures():
        where = asyncio.run(
            _send(
                server,
                receipt,
                thumb=thumb.value if thumb else None,
                rating=rating,
                comment=comment,
                retract=retract,
                aspect=aspect,
                user=user,
            )
        )
    print(f"recorded ({where.value})")


async def _send(
    server: str,
    receipt: str,
    *,
    thumb: Literal["up", "down"] | None,
    rating: int | None,
    comment: str | None,
    retract: bool,
    aspect: str,
    user: str,
) -> Durability:
    from plaudit_client import Durability

    where = Durability.UNKNOWN
    async with connect(server) as client:
        if retract:
            return await client.retract_feedback(receipt, aspect=aspect, user_id=user)
        # The comment first: a later statement on the same aspect replaces an earlier one, and the thumb is to stand.
        if comment is not None:
            where = await client.submit_feedback(receipt, comment=comment, aspect=aspect, user_id=user)
        if thumb is not None or rating is not None:
            where = await client.submit_feedback(receipt, thumb=thumb, rating=rating, aspect=aspect, user_id=user)
    return where
