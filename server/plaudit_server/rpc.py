"""The gRPC server: Plaudit's services, health and reflection, and the drain."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from plaudit.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    privacy_pb2,
    privacy_pb2_grpc,
)
from plaudit_server import connections, wire
from plaudit_server.chat import ChatService
from plaudit_server.config import ServerSettings
from plaudit_server.feedback import FeedbackService
from plaudit_server.interceptors import ErrorInterceptor
from plaudit_server.policies import PolicyService
from plaudit_server.privacy import PrivacyService

_CLOSE_SECONDS = 1.0
_SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (chat_pb2, "ChatService"),
        (feedback_pb2, "FeedbackService"),
        (policy_pb2, "PolicyService"),
        (privacy_pb2, "PrivacyService"),
    )
)
_CHAT = chat_pb2.DESCRIPTOR.services_by_name["ChatService"].full_name


class Rpc:
    """Starts serving; says in health what is served; stops without cutting a stream."""

    def __init__(
        self,
        settings: ServerSettings,
        chat: ChatService,
        feedback: FeedbackService,
        policies: PolicyService,
        privacy: PrivacyService,
    ) -> None:
        self._listen = settings.listen
        self._health = health.aio.HealthServicer()
        self._chat = chat
        self._policies = policies
        self._feedback = feedback
        self._chats = True
        self._listening = False
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[*wire.options(settings), *connections.options(settings), ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=settings.max_calls,
        )
        chat_pb2_grpc.add_ChatServiceServicer_to_server(chat, self._server)
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(feedback, self._server)
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(policies, self._server)
        privacy_pb2_grpc.add_PrivacyServiceServicer_to_server(privacy, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    @property
    def running(self) -> int:
        """Streams that have not ended."""
        return self._chat.admission.admitted

    async def start(self) -> str:
        """Listen, and say SERVING; returns the address. Raises OSError if it cannot listen there."""
        host, _, _ = self._listen.rpartition(":")
        try:
            port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen at {self._listen}: is another server there? ({error})") from error
        await self._server.start()
        self._listening = True
        await self._say()
        return f"{host}:{port}"

    async def stop(self, drain_seconds: float) -> None:
        """Say NOT_SERVING, refuse new chats, let running ones end for up to `drain_seconds`, then close.

        Until they have ended, votes are still taken and health still answers.
        """
        await self._health.enter_graceful_shutdown()
        await self._policies.stop()
        await self._chat.admission.drain(drain_seconds)
        self._feedback.stop()
        await self._server.stop(_CLOSE_SECONDS)

    async def serve_chats(self, serves: bool) -> None:
        """Say in health whether chats are served; so does the server as a whole. The other services go on."""
        self._chats = serves
        if self._listening:
            await self._say()

    async def _say(self) -> None:
        for service in ("", *_SERVICES):
            serves = self._chats or service not in ("", _CHAT)
            status = health_pb2.HealthCheckResponse
            await self._health.set(service, status.SERVING if serves else status.NOT_SERVING)
