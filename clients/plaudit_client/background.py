"""An event loop in a thread of its own, on which synchronous clients run the asynchronous one.

All of a process share it, since gRPC has one completion queue for all loops, and each more is woken by the calls of the
others. It is started by the first client and ends with the interpreter.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from plaudit_client.errors import Cancelled

T = TypeVar("T")

_FORKED = (
    "gRPC was used by a client of this process's parent, and does not survive the fork: make no client before, "
    "and one in each process after it"
)


class Closing(Protocol):
    """What is to be closed before the loop ends."""

    async def close(self) -> None:
        """Raises nothing that anybody could mend."""


class Background:
    """The loop, and the way to it from other threads."""

    def __init__(self) -> None:
        self.closing: weakref.WeakSet[Closing] = weakref.WeakSet()
        """What is closed at the end, if nobody did before."""
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_without_grpc_noise)
        self._thread = threading.Thread(target=self._loop.run_forever, name="plaudit_client", daemon=True)
        self._thread.start()

    def here(self) -> bool:
        """Whether this is the process that it was started in: a thread does not survive a fork."""
        return self._process == os.getpid()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What `coroutine` returns or raises; it is cancelled if the wait for it is interrupted (Ctrl-C).

        Raises Cancelled if somebody else ended it, by closing the client, and RuntimeError where it cannot run.
        """
        if not self.here():
            coroutine.close()
            raise RuntimeError(_FORKED)
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a synchronous client cannot be used inside its own event loop")
        done = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return done.result()
        except CancelledError:
            raise Cancelled("the client was closed meanwhile") from None
        except BaseException:
            done.cancel()
            raise

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns, called on the loop. From any thread, a finaliser's included; it must not block."""
        if threading.current_thread() is self._thread:
            return function()

        async def called() -> T:
            return function()

        return self.run(called())

    def each(self, items: AsyncIterator[T]) -> Generator[T, None, None]:
        """Iterate over an asynchronous generator from here, item by item: it goes no faster than it is read."""

        async def following() -> tuple[T] | None:
            try:
                return (await anext(items),)
            except StopAsyncIteration:
                return None

        try:
            while (item := self.run(following())) is not None:
                yield item[0]
        finally:
            if self.here():
                self._leave(items)

    def _leave(self, items: AsyncIterator[Any]) -> None:
        # Does not wait: this may run in a finaliser, in any thread, and whatever that thread holds.
        with suppress(RuntimeError):  # the loop is closed: the interpreter ends
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(_close(items)))

    def pulled(self, items: Iterable[T]) -> AsyncGenerator[T, None]:
        """`items` for a reader on the loop; they are taken from in a thread of their own, since they may block."""
        return _pulled(items, self._loop)

    def close(self) -> None:
        """End the thread, if it is this process's. What runs on the loop is cancelled."""
        if not self.here() or not self._thread.is_alive():
            return
        with suppress(Cancelled):
            self.run(_end(list(self.closing)))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


_shared: Background | None = None
_starting = threading.Lock()


def background() -> Background:
    """The one of this process. Raises RuntimeError in a child of a process that had one: gRPC would hang there."""
    global _shared  # noqa: PLW0603
    with _starting:
        if _shared is not None and not _shared.here():
            raise RuntimeError(_FORKED)
        if _shared is None:
            _shared = Background()
            atexit.register(_shared.close)
        return _shared


def _after_fork() -> None:
    global _starting  # noqa: PLW0603
    _starting = threading.Lock()  # another thread may have held it


os.register_at_fork(after_in_child=_after_fork)


async def _close(items: AsyncIterator[Any]) -> None:
    if isinstance(items, AsyncGenerator):
        with suppress(RuntimeError):  # somebody reads it just now, and cleans up
            await items.aclose()


async def _end(open_: list[Closing]) -> None:
    await asyncio.gather(*(one.close() for one in open_), return_exceptions=True)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _pulled(items: Iterable[T], loop: asyncio.AbstractEventLoop) -> AsyncGenerator[T, None]:
    asked: SimpleQueue[asyncio.Future[tuple[T] | None] | None] = SimpleQueue()

    def pull() -> None:
        iterator = None
        while (following := asked.get()) is not None:
            try:
                iterator = iter(items) if iterator is None else iterator
                item = (next(iterator),)
            except StopIteration:
                tell = partial(_settle, following, None)
            except Exception as error:  # noqa: BLE001 - it is the reader's to raise
                tell = partial(_fail, following, error)
            else:
                tell = partial(_settle, following, item)
            with suppress(RuntimeError):  # the loop is closed: the interpreter ends
                loop.call_soon_threadsafe(tell)

    # Not a pool's thread, which the interpreter would wait for at its end, however long an item takes.
    threading.Thread(target=pull, name="plaudit_client statements", daemon=True).start()
    try:
        while True:
            following: asyncio.Future[tuple[T] | None] = loop.create_future()
            asked.put(following)
            if (item := await following) is None:
                return
            yield item[0]
    finally:
        asked.put(None)


def _settle(future: asyncio.Future[T], result: T) -> None:
    if not future.done():  # nobody waits any more
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _without_grpc_noise(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # With grpc.aio on several loops, one is woken for an event that another has taken already, and finds nothing to
    # read: https://github.com/grpc/grpc/issues/25364. Nothing is lost.
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)
