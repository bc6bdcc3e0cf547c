"""GET /v1/loop and /v1/loop/events: how learning goes, with the versions that came of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Any

from fastapi import Request

from plaudit_client import AsyncClient, Loop, PermissionDenied, PlauditError
from plaudit_gateway import versions
from plaudit_gateway.chat_request import Strict
from plaudit_gateway.errors import from_client
from plaudit_gateway.sse import KEEP_ALIVE, EventStream, event, unless_gone

_KEEP_ALIVE_SECONDS = 15.0


class Picture(Strict):
    """The loop as the servers know it: `Loop` of loop.proto, and what operators may know of the versions.

    Times are RFC 3339 in UTC; numbers that there are none for are null; states are those of `policies`.
    """

    learner: dict[str, Any] | None
    """What the learner does, and what it has counted; null until it has said something."""
    rounds: list[dict[str, Any]]
    """Oldest first."""
    releases: list[dict[str, Any]]
    """Every step of every version, oldest first."""
    policies: list[versions.PolicyAnswer]
    """Oldest first; empty if the caller may not list them (permission `admin`)."""
    serving_version: str | None
    """What the control plane's server gives new requests; null if the caller may not know."""


async def now(client: AsyncClient) -> dict[str, Any]:
    """As Picture. Raises Wrong."""
    try:
        return await _picture(await client.get_loop(), client)
    except PlauditError as error:
        raise from_client(error, {}) from None


async def events(request: Request, client: AsyncClient, stopping: asyncio.Event) -> EventStream:
    """The picture now, and again whenever it changes, until the caller leaves or `stopping` is set. Raises Wrong."""
    pictures = _pictures(client)
    try:
        first = await unless_gone(request, _next(pictures))
    except PlauditError as error:
        raise from_client(error, {}) from None
    return EventStream(_events(first, pictures, stopping))


async def _pictures(client: AsyncClient) -> AsyncGenerator[dict[str, Any]]:
    async with aclosing(client.watch_loop()) as loops:
        async for loop in loops:
            yield await _picture(loop, client)


async def _next(pictures: AsyncGenerator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(pictures, None)


async def _events(
    picture: dict[str, Any] | None, pictures: AsyncGenerator[dict[str, Any]], stopping: asyncio.Event
) -> AsyncGenerator[bytes]:
    stop = asyncio.create_task(stopping.wait())
    following: asyncio.Task[dict[str, Any] | None] | None = None
    try:
        while picture is not None:
            yield event(picture)
            following = asyncio.create_task(_next(pictures))
            while not following.done():
                waited: set[asyncio.Task[Any]] = {following, stop}
                await asyncio.wait(waited, timeout=_KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if stop.done():
                    return
                if not following.done():
                    yield KEEP_ALIVE
            picture = following.result()
    except PlauditError as error:  # the server stops, or the connection got too old: the caller asks again
        yield event(from_client(error, {}).body())
    finally:
        tasks = [task for task in (following, stop) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pictures.aclose()


async def _picture(loop: Loop, client: AsyncClient) -> dict[str, Any]:
    picture: dict[str, Any] = _plain(loop)
    try:
        policies = await client.list_policies()
    except PermissionDenied:  # who may only observe
        return {**picture, "policies": [], "serving_version": None}
    return {
        **picture,
        "policies": [versions.as_json(policy) for policy in policies.policies],
        "serving_version": policies.serving_version,
    }


def _plain(value: Any) -> Any:
    """What JSON knows."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return versions.rfc3339(value)
    return versions.number(value) if isinstance(value, float) else value
