"""Checks of what comes in. Each raises Refusal INVALID_ARGUMENT that names the field and says what would be right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from plaudit.v1.chat_pb2 import Message, Role, StreamChatRequest
from plaudit_server import sampling_bounds as bounds
from plaudit_server.config import ServerSettings
from plaudit_server.engine import Sampling
from plaudit_server.refusal import invalid

T = TypeVar("T")

_MAX_MESSAGES = 256
_MAX_CONTENT_BYTES = 65_536
_BYTES_A_TOKEN = (
    32  # prose has 3 to 5; more than this on average, and only to be tokenised and then refused, is no chat
)


def most_text(settings: ServerSettings) -> int:
    """Bytes of UTF-8 of all messages of a conversation together, at most: a multiple of any that fits the context."""
    return _BYTES_A_TOKEN * settings.max_context


def check_text(field: str, text: str, most: int) -> int:
    """`text` must be 1 to `most` bytes of UTF-8, not only white space, and without control characters.

    Returns how many bytes it has.
    """
    size = len(text.encode())
    if not text.strip():
        raise invalid(field, f"is empty; give 1 to {most:,} bytes of text")
    if size > most:
        raise invalid(field, f"has {size:,} bytes; the most is {most:,}")
    _check(field, bounds.no_controls, text)
    return size


def _check(field: str, bound: Callable[[T], T], value: T) -> None:
    try:
        bound(value)
    except ValueError as error:
        raise invalid(field, str(error)) from None


def check_identifier(field: str, text: str, most: int) -> None:
    """`text` may be empty, must have at most `most` bytes, and no control characters."""
    size = len(text.encode())
    if size > most:
        raise invalid(field, f"has {size:,} bytes; the most is {most:,}")
    if not text.isprintable():
        raise invalid(field, "holds control characters; use printable ones")


def check_messages(messages: Sequence[Message], settings: ServerSettings) -> None:
    """At most one system message, first; then user and assistant in turn, beginning and ending with the user."""
    if not messages:
        raise invalid("messages", "is empty; give at least one message, by the user")
    if len(messages) > _MAX_MESSAGES:
        raise invalid("messages", f"has {len(messages)} messages; the most is {_MAX_MESSAGES}")
    expected = Role.ROLE_USER
    size = 0
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if index == 0 and message.role == Role.ROLE_SYSTEM:
            pass
        elif message.role == Role.ROLE_SYSTEM:
            raise invalid(f"{field}.role", "is ROLE_SYSTEM; a system message can only be the first")
        elif message.role != expected:
            raise invalid(
                f"{field}.role",
                f"must be {Role.Name(expected)}: user and assistant take turns, the user begins and ends",
            )
        else:
            expected = Role.ROLE_ASSISTANT if expected == Role.ROLE_USER else Role.ROLE_USER
        size += check_text(f"{field}.content", message.content, _MAX_CONTENT_BYTES)
    if messages[-1].role != Role.ROLE_USER:
        raise invalid(f"messages[{len(messages) - 1}].role", "must be ROLE_USER: the conversation ends with the user")
    most = most_text(settings)
    if size > most:
        raise invalid(
            "messages",
            f"have {size:,} bytes of text; for a context of {settings.max_context:,} tokens {most:,} are read",
        )


def check_sampling(request: StreamChatRequest, settings: ServerSettings) -> Sampling:
    """The sampling parameters, with the server's defaults for what is not said."""
    asked = request.sampling
    temperature = asked.temperature if asked.HasField("temperature") else settings.default_temperature
    top_p = asked.top_p if asked.HasField("top_p") else settings.default_top_p
    max_tokens = asked.max_tokens if asked.HasField("max_tokens") else settings.default_max_tokens
    _check("sampling.temperature", bounds.temperature, temperature)
    if not 0 < top_p <= 1:
        raise invalid("sampling.top_p", f"is {top_p:g}; it must be above 0 and at most 1")
    if not 1 <= max_tokens <= settings.max_tokens:
        raise invalid("sampling.max_tokens", f"is {max_tokens}; it must be 1 to {settings.max_tokens}")
    if len(asked.stop) > bounds.MAX_STOPS:
        raise invalid("sampling.stop", f"has {len(asked.stop)} strings; the most is {bounds.MAX_STOPS}")
    for index, stop in enumerate(asked.stop):
        _check(f"sampling.stop[{index}]", bounds.stop, stop)
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=asked.seed if asked.HasField("seed") else None,
        stop=tuple(asked.stop) or tuple(settings.default_stop),
    )
