"""`plaudit erase`: for operators, forget everything that one user said, or was told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit_cli.common import DEFAULT_CONTROL, Control, connect, failures

if TYPE_CHECKING:
    from plaudit_client import Erased


def erase(
    user: Annotated[str, typer.Argument(help="The user id, as it was given with chats and votes.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: Annotated[str, typer.Option(help="Why, for the record, which is kept: name nobody here.")] = "",
    control: Control = DEFAULT_CONTROL,
) -> None:
    """Forget everything that a user said, or was told, until now; the next version is trained without it.

    It cannot be undone. docs/records.md says what is not reached: versions published before, and the event log itself.
    """
    if not yes:
        typer.confirm(f"Erase everything that {user!r} said, or was told, until now? It cannot be undone.", abort=True)
    with failures():
        erased = asyncio.run(_erase(control, user, reason))
    print(
        f"erased until {erased.until.astimezone():%Y-%m-%d %H:%M:%S} ({erased.durability.value}); the learner follows"
    )


async def _erase(control: str, user: str, reason: str) -> Erased:
    async with connect(control) as client:
        return await client.erase_user(user, reason)
