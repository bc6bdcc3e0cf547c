"""PrivacyService: what people may ask of those who keep their data, written down for the learner to follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from plaudit.events import ERASURES, Record
from plaudit.v1 import privacy_pb2_grpc
from plaudit.v1.events_pb2 import Erasure
from plaudit.v1.privacy_pb2 import EraseUserRequest, EraseUserResponse
from plaudit_server.outbox import Outbox, durable
from plaudit_server.validation import check_identifier, check_text


class PrivacyService(privacy_pb2_grpc.PrivacyServiceServicer):
    """Hashes the user id, and appends."""

    def __init__(self, pseudonym: Callable[[str], str], outbox: Outbox) -> None:
        self._pseudonym = pseudonym
        self._outbox = outbox

    async def EraseUser(
        self, request: EraseUserRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> EraseUserResponse:
        """See privacy.proto."""
        check_text("user_id", request.user_id, 256)
        check_identifier("user_id", request.user_id, 256)
        check_identifier("reason", request.reason, 1024)
        user = self._pseudonym(request.user_id)
        record = Erasure(schema_version=1, user=user, actor="operator", reason=request.reason)
        record.time.GetCurrentTime()
        # A key of its own: of one key, compaction keeps what was appended last, and outboxes append late what is early.
        key = f"{user}/{record.time.ToJsonString()}"
        written = self._outbox.append(Record(ERASURES, key, record.SerializeToString()))
        durability = await durable(written, "the erasure")
        return EraseUserResponse(durability=durability, erased_until=record.time)
