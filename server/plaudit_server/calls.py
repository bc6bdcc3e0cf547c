"""One call as operators see it: a line in the log when it has ended, and a span where there are traces.

interceptors.py begins and ends it; the services note what only they know. Neither a line nor a span holds what anybody
said, or a user's id, or a receipt, which is the right to vote.
"""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import grpc

from plaudit import logs, tracing
from plaudit_server import caller

_access = logging.getLogger(logs.ACCESS)

_TRACE_CONTEXT = ("traceparent", "tracestate")
# By the semantic conventions for gRPC; with the others the server did what it should.
_FAILED = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


@dataclass(slots=True)
class Call:
    """What is known of a call so far."""

    method: str
    """In full: /plaudit.v1.ChatService/StreamChat."""
    code: str = "OK"
    """How it ended: a gRPC status code's name."""
    wrong: str = ""
    """The request's field that was refused."""
    policy_version: str = ""
    response_id: str = ""
    waiting_seconds: float | None = None
    """From admission to its turn."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str = ""
    statements: int | None = None
    """Of a stream of feedback: those that were settled."""
    span: tracing.Span = tracing.NONE
    began: float = field(default_factory=time.perf_counter)
    _theirs: str = ""

    def trace(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Begin the call's span, below its caller's; it is the current one to the end of this task."""
        metadata = context.invocation_metadata() or ()
        parent = {str(key): str(value) for key, value in metadata if key in _TRACE_CONTEXT}
        self._theirs = parent.get("traceparent", "")
        attributes = {"rpc.system.name": "grpc", "rpc.method": self.method[1:]}
        self.span = tracing.span(self.method[1:], kind="server", parent=parent, attributes=attributes)
        self.span.__enter__()

    def reply(self, response_id: str, policy_version: str) -> None:
        """Note which reply it is about."""
        self.response_id, self.policy_version = response_id, policy_version

    def end(self) -> None:
        """It has ended, with `code`."""
        seconds = time.perf_counter() - self.began
        name = caller.current.get().name
        trace_id = tracing.trace_of(self.span.traceparent or self._theirs)
        attributes = {
            "rpc.response.status_code": self.code,
            "plaudit.caller": name,
            "plaudit.policy_version": self.policy_version,
            "plaudit.response_id": self.response_id,
        }
        self.span.set({key: value for key, value in attributes.items() if value})
        if self.code in _FAILED:
            self.span.fail(self.code)
        self.span.__exit__(None, None, None)
        if _access.isEnabledFor(logging.INFO):
            _access.info("%s", _Words(self, seconds, name), extra=self._fields(seconds, name, trace_id))

    def _fields(self, seconds: float, name: str, trace_id: str) -> dict[str, Any]:
        return logs.fields(
            method=self.method,
            code=self.code,
            field=self.wrong,
            seconds=round(seconds, 6),
            waiting_seconds=None if self.waiting_seconds is None else round(self.waiting_seconds, 6),
            caller=name,
            policy_version=self.policy_version,
            response_id=self.response_id,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            finish_reason=self.finish_reason,
            statements=self.statements,
            trace_id=trace_id,
        )


@dataclass(slots=True, frozen=True)
class _Words:
    """A line for people; made when it is written, which is another thread's work."""

    call: Call
    seconds: float
    caller: str

    def __str__(self) -> str:
        call = self.call
        parts = [f"{call.method.rpartition('/')[2]} {call.code} {self.seconds:.3f} s"]
        if call.wrong:
            parts.append(f"field {call.wrong}")
        if call.waiting_seconds is not None:
            parts.append(f"waited {call.waiting_seconds:.3f} s")
        if call.policy_version:
            parts.append(call.policy_version)
        if call.completion_tokens is not None:
            parts.append(f"{call.prompt_tokens} + {call.completion_tokens} tokens ({call.finish_reason})")
        if call.statements is not None:
            parts.append(f"{call.statements} statements")
        if self.caller:
            parts.append(f"caller {self.caller}")
        if call.response_id:
            parts.append(f"reply {call.response_id}")
        return ", ".join(parts)


current: ContextVar[Call] = ContextVar("call", default=Call(""))  # noqa: B039 - outside of a call nobody reads it
"""The call that this task serves."""
