"""A proxy in front of the embedded broker that holds its answers back: all of them, or those to fetches."""

from __future__ import annotations

import queue
import socket
import struct
import threading
from contextlib import suppress
from typing import BinaryIO

from plaudit.broker import EmbeddedBroker, free_port

_FETCH = 1  # its API key


class SlowBroker:
    """`with SlowBroker() as broker: … broker.address …; broker.seconds = 0.4`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Until an answer is handed on; one after the other."""
        self.fetch_seconds = 0.0
        """The same, of answers to fetches, if it is more."""
        self._listener = socket.create_server(("127.0.0.1", free_port()))
        self._port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._inner = EmbeddedBroker(advertised_port=self._port)
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> SlowBroker:
        self._inner.start()
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for end in (self._listener, *self._sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(10)
        self._inner.stop()

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, name="slow-broker")  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", int(self._inner.address.rpartition(":")[2])))
                self._sockets += [client, broker]
                asked: queue.Queue[int] = queue.Queue()
                self._start(self._requests, client, broker, asked)
                self._start(self._answers, broker, client, asked)

    def _requests(self, client: socket.socket, broker: socket.socket, asked: queue.Queue[int]) -> None:
        with suppress(OSError), client.makefile("rb") as frames:
            while frame := _frame(frames):
                asked.put(struct.unpack_from(">h", frame, 4)[0])
                broker.sendall(frame)
        with suppress(OSError):
            broker.shutdown(socket.SHUT_RDWR)

    def _answers(self, broker: socket.socket, client: socket.socket, asked: queue.Queue[int]) -> None:
        with suppress(OSError), broker.makefile("rb") as frames:
            while frame := _frame(frames):  # in the order of the requests
                fetch = asked.get() == _FETCH
                self._ended.wait(max(self.seconds, self.fetch_seconds) if fetch else self.seconds)
                client.sendall(frame)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


def _frame(stream: BinaryIO) -> bytes:
    """The next one with its length before it; nothing at the end."""
    size = stream.read(4)
    return size + stream.read(struct.unpack(">i", size)[0]) if len(size) == 4 else b""
