"""Health, as gRPC has it (grpc.health.v1): what is said here reaches its callers, and waits for none of them.

grpc_health's own servicer writes to those who watch under the lock that a change needs. Watching asks for no key, so a
stranger who reads nothing would keep a server from draining, and its keeper from restarting a dead engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from plaudit_server.refusal import Refusal

SERVICE_NAME = "grpc.health.v1.Health"


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Of the services at one address; "" is all of it."""

    def __init__(self) -> None:
        self._statuses: dict[str, Any] = {}
        self._changed = asyncio.Event()
        self._stopping = False

    def say(self, serves: Mapping[str, bool]) -> None:
        """Which services are served, and which are not; after `stop`, none are."""
        for service, served in serves.items():
            said = HealthCheckResponse.SERVING if served and not self._stopping else HealthCheckResponse.NOT_SERVING
            self._statuses[service] = said
        self._changed.set()
        self._changed = asyncio.Event()

    def stop(self) -> None:
        """Say NOT_SERVING of all services, for good."""
        self._stopping = True
        self.say(dict.fromkeys(self._statuses, False))

    async def Check(
        self, request: HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> HealthCheckResponse:
        """See grpc.health.v1; raises Refusal NOT_FOUND for a service that is not at this address."""
        if request.service not in self._statuses:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "there is no such service at this address")
        return HealthCheckResponse(status=self._statuses[request.service])

    async def Watch(self, request: HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """See grpc.health.v1; of several changes during one write, the last is told."""
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                # No time limit: behind a message that is not read gRPC can end no call, and this one is counted
                # (places.py) for as long as it is there.
                await context.write(HealthCheckResponse(status=status))
                told = status
            await changed.wait()
