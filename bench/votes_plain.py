"""What a user would write to keep votes in Kafka: a gRPC service around a kafka-python producer, and a consumer that
commits by itself and writes to SQLite. Both with kafka-python's own settings, which are the durable ones (acks=all,
idempotent); every vote is acknowledged when the broker has it.

    python -m bench.votes_plain serve PORT BROKER
    python -m bench.votes_plain consume DATABASE BROKER
"""

from __future__ import annotations

import sqlite3
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from plaudit.v1 import feedback_pb2_grpc
from plaudit.v1.feedback_pb2 import (
    RetractFeedbackRequest,
    RetractFeedbackResponse,
    SubmitFeedbackRequest,
    SubmitFeedbackResponse,
    Thumb,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaConsumer, KafkaProducer
    from kafka.errors import KafkaError

TOPIC = "plain.votes"


class Service(feedback_pb2_grpc.FeedbackServiceServicer):
    """Takes the same requests as Plaudit's; `receipt` is the reply's name here."""

    def __init__(self, broker: str) -> None:
        self._producer = KafkaProducer(bootstrap_servers=broker)

    def SubmitFeedback(self, request: SubmitFeedbackRequest, context: grpc.ServicerContext) -> SubmitFeedbackResponse:
        """Keep a vote."""
        verdict = "up" if request.thumb == Thumb.THUMB_UP else "down"
        self._send(request.receipt, request.idempotency_key, verdict, context)
        return SubmitFeedbackResponse()

    def RetractFeedback(
        self, request: RetractFeedbackRequest, context: grpc.ServicerContext
    ) -> RetractFeedbackResponse:
        """Keep a retraction."""
        self._send(request.receipt, request.idempotency_key, "retraction", context)
        return RetractFeedbackResponse()

    def StreamFeedback(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:
        """Not here."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    def _send(self, reply: str, key: str, verdict: str, context: grpc.ServicerContext) -> None:
        try:
            value = "\t".join((reply, key, verdict)).encode()
            self._producer.send(TOPIC, key=reply.encode(), value=value).get(timeout=10)
        except KafkaError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))


def serve(port: str, broker: str) -> None:
    server = grpc.server(ThreadPoolExecutor(64))
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(Service(broker), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def consume(path: str, broker: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE IF NOT EXISTS votes (reply TEXT, key TEXT, verdict TEXT)")
        consumer = KafkaConsumer(
            TOPIC,
            group_id="votes",
            bootstrap_servers=broker,
            auto_offset_reset="earliest",
            # Sooner than by default (45 s), or a consumer that was killed would keep its place for most of the run.
            session_timeout_ms=6000,
            heartbeat_interval_ms=2000,
        )
        for message in consumer:
            database.execute("INSERT INTO votes VALUES (?, ?, ?)", message.value.decode().split("\t"))
            database.commit()


if __name__ == "__main__":
    {"serve": serve, "consume": consume}[sys.argv[1]](*sys.argv[2:])
