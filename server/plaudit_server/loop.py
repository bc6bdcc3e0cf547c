"""LoopService: whoever may look sees how the loop goes, from this server's picture of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc

from plaudit.v1 import loop_pb2_grpc
from plaudit.v1.loop_pb2 import GetLoopRequest, GetLoopResponse, Loop, WatchLoopRequest, WatchLoopResponse
from plaudit_server.picture import Picture
from plaudit_server.watchers import stopping, watchers

_PAUSE_SECONDS = 1.0


class LoopService(loop_pb2_grpc.LoopServiceServicer):
    """Shows the picture; changes nothing."""

    def __init__(self, picture: Picture, max_watchers: int) -> None:
        self._picture = picture
        self._watchers = watchers(max_watchers, instead="GetLoop")
        self._stopping = asyncio.Event()

    async def GetLoop(self, request: GetLoopRequest, context: grpc.aio.ServicerContext[Any, Any]) -> GetLoopResponse:
        """See loop.proto."""
        return GetLoopResponse(loop=self._picture.loop)

    async def WatchLoop(  # type: ignore[override]  # a coroutine that writes, as ChatService.StreamChat
        self, request: WatchLoopRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See loop.proto."""
        with self._watchers.one_more():
            await self._watch(context)

    async def _watch(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        shown: Loop | None = None
        while not self._stopping.is_set():
            # Nothing queues up for a watcher that reads slowly: after the wait, it gets what is newest.
            if self._picture.loop is not shown:
                shown = self._picture.loop
                await context.write(WatchLoopResponse(loop=shown))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), _PAUSE_SECONDS)
            else:
                await self._picture.changed(shown)
        raise stopping()

    async def stop(self) -> None:
        """End the watches."""
        self._stopping.set()
        await self._picture.wake()
