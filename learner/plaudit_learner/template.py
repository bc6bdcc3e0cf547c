"""From text to token ids, as the servers do it: the base model's own chat template and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from plaudit import chat_template
from plaudit.chat_template import Turn

ROLES = ("system", "user", "assistant")


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    """One of ROLES."""
    content: str


class ChatTemplate:
    """The template of the base model, for conversations that were written elsewhere."""

    def __init__(self, model: Path) -> None:
        """Raises ValueError if the model cannot chat, OSError if its tokenizer cannot be read."""
        self._template = chat_template.ChatTemplate(model)
        if self._template.eos_token_id is None:
            raise ValueError(f"{model}: its tokenizer has no end-of-sequence token, so it cannot chat")
        self._end = self._template.eos_token_id

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of the conversation, ending where the assistant is to speak.

        Raises ValueError, which names the field, if the template could not tell a content from a turn.
        """
        return self._template.prompt([Turn(role=role, content=content) for role, content in messages])

    def reply(self, text: str, field: str = "reply") -> tuple[int, ...]:
        """Token ids of a whole reply, with the end-of-sequence token after it; errors are ValueErrors, as above."""
        return (*self._template.text(text, field), self._end)
