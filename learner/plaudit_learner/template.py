"""From text to token ids, as the servers do it: the base model's own chat template and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROLES = ("system", "user", "assistant")


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    """One of ROLES."""
    content: str


class ChatTemplate:
    """The tokenizer of the base model, for conversations that were written elsewhere."""

    def __init__(self, model: Path) -> None:
        """Raises ValueError if the model cannot chat, OSError if its tokenizer cannot be read."""
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        if self._tokenizer.chat_template is None or self._tokenizer.eos_token_id is None:
            raise ValueError(f"{model}: its tokenizer has no chat template or no end-of-sequence token: it cannot chat")

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of the conversation, ending where the assistant is to speak. Raises ValueError as `reply` does."""
        for index, message in enumerate(messages):
            self._refuse_special(f"messages[{index}].content", message.content)
        conversation = [message._asdict() for message in messages]
        return tuple(
            self._tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )

    def reply(self, text: str, field: str = "reply") -> tuple[int, ...]:
        """Token ids of a whole reply, with the end-of-sequence token after it; errors call it `field`.

        Raises ValueError if it holds one of the template's own tokens: it would be read as a turn that nobody took.
        """
        self._refuse_special(field, text)
        return (*self._tokenizer(text, add_special_tokens=False).input_ids, self._tokenizer.eos_token_id)

    def _refuse_special(self, field: str, text: str) -> None:
        for token in self._tokenizer.all_special_tokens:
            if token in text:
                raise ValueError(f"{field}: holds {token}, which only the chat template may use")
