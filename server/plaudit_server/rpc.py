"""The gRPC servers, a public one and one for operators: Plaudit's services, health and reflection, and the drain.

An address of its own keeps the control plane where applications and their users cannot even knock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import grpc
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from plaudit.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    loop_pb2,
    loop_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    privacy_pb2,
    privacy_pb2_grpc,
)
from plaudit_server import connections, health, wire
from plaudit_server.chat import ChatService
from plaudit_server.config import ServerSettings
from plaudit_server.feedback import FeedbackService
from plaudit_server.interceptors import Guard
from plaudit_server.loop import LoopService
from plaudit_server.policies import PolicyService
from plaudit_server.privacy import PrivacyService

_CLOSE_SECONDS = 1.0
_CHAT = chat_pb2.DESCRIPTOR.services_by_name["ChatService"].full_name

S = TypeVar("S")


class Addresses(NamedTuple):
    """Where a server listens."""

    public: str
    """Chat and feedback, for applications."""
    control: str
    """Policies, the loop and privacy, for operators."""


class Rpc:
    """Starts serving; says in health what is served; stops without cutting a stream."""

    def __init__(
        self,
        settings: ServerSettings,
        chat: ChatService,
        feedback: FeedbackService,
        policies: PolicyService,
        loop: LoopService,
        privacy: PrivacyService,
        *,
        guards: Sequence[Guard],
        credentials: Sequence[grpc.ServerCredentials | None],
    ) -> None:
        """`guards`, `credentials`: of each address its own; None: no TLS."""
        self._chat = chat
        self._policies = policies
        self._loop = loop
        self._feedback = feedback
        self._chats = True
        addresses = Addresses(settings.listen, settings.control_listen)
        public, control = (_Port(*place, settings) for place in zip(addresses, credentials, guards, strict=True))
        self._ports = (public, control)
        public.add(chat_pb2.DESCRIPTOR, chat_pb2_grpc.add_ChatServiceServicer_to_server, chat)
        public.add(feedback_pb2.DESCRIPTOR, feedback_pb2_grpc.add_FeedbackServiceServicer_to_server, feedback)
        control.add(policy_pb2.DESCRIPTOR, policy_pb2_grpc.add_PolicyServiceServicer_to_server, policies)
        control.add(loop_pb2.DESCRIPTOR, loop_pb2_grpc.add_LoopServiceServicer_to_server, loop)
        control.add(privacy_pb2.DESCRIPTOR, privacy_pb2_grpc.add_PrivacyServiceServicer_to_server, privacy)
        self._say()

    @property
    def running(self) -> int:
        """Streams that have not ended."""
        return self._chat.admission.admitted

    async def start(self) -> Addresses:
        """Listen; returns where. Raises OSError if it cannot listen there."""
        return Addresses(*[await port.start() for port in self._ports])

    async def stop(self, drain_seconds: float) -> None:
        """Say NOT_SERVING, refuse new chats, let running ones end for up to `drain_seconds`, then close.

        Until they have ended, votes are still taken and health still answers.
        """
        for port in self._ports:
            port.health.stop()
        await self._policies.stop()
        await self._loop.stop()
        await self._chat.admission.drain(drain_seconds)
        self._feedback.stop()
        await asyncio.gather(*(port.server.stop(_CLOSE_SECONDS) for port in self._ports))

    async def serve_chats(self, serves: bool) -> None:
        """Say in health whether chats are served; so does the public port as a whole. The other services go on."""
        self._chats = serves
        self._say()

    def _say(self) -> None:
        public, control = self._ports
        public.say(chat=self._chats)
        control.say(chat=True)


class _Port:
    """One address: the services there, their health and reflection."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ServerCredentials | None,
        guard: Guard,
        settings: ServerSettings,
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._services: list[str] = []
        self.health = health.Health()
        self.server = grpc.aio.server(
            interceptors=[guard],
            options=[*wire.options(settings), *connections.options(settings), ("grpc.so_reuseport", 0)],
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)

    def add(self, file: FileDescriptor, register: Callable[[S, grpc.aio.Server], None], servicer: S) -> None:
        """Serve the services of a file of the contract here."""
        register(servicer, self.server)
        self._services += [service.full_name for service in file.services_by_name.values()]

    async def start(self) -> str:
        """Listen; returns the address. Raises OSError if it cannot listen there."""
        everything = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(everything, self.server)
        host, _, _ = self._address.rpartition(":")
        try:
            if self._credentials is None:
                port = self.server.add_insecure_port(self._address)
            else:
                port = self.server.add_secure_port(self._address, self._credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen at {self._address}: is another server there? ({error})") from error
        await self.server.start()
        return f"{host}:{port}"

    def say(self, *, chat: bool) -> None:
        """Say in health that all is served; `chat`: whether chats are, too."""
        self.health.say({service: chat or service not in ("", _CHAT) for service in ("", *self._services)})
