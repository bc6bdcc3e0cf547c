"""From messages to the prompt's token ids, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plaudit import chat_template
from plaudit.chat_template import Turn, Unencodable
from plaudit.v1.chat_pb2 import Message, Role
from plaudit_server.refusal import invalid

_NAMES = {Role.ROLE_SYSTEM: "system", Role.ROLE_USER: "user", Role.ROLE_ASSISTANT: "assistant"}


class ChatTemplate:
    """The template of the base model, for checked messages."""

    def __init__(self, model: Path) -> None:
        """Raises ValueError if the model cannot chat, OSError if its tokenizer cannot be read."""
        self._template = chat_template.ChatTemplate(model)

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of the conversation, ending where the assistant is to speak.

        Raises Refusal INVALID_ARGUMENT if the template does not take it, or could not tell a content from a turn.
        """
        try:
            return self._template.prompt([Turn(role=_NAMES[each.role], content=each.content) for each in messages])
        except Unencodable as error:
            raise invalid(error.field, error.reason) from error
