"""From messages to the prompt's token ids, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plaudit.v1.chat_pb2 import Message, Role
from plaudit_server.refusal import invalid

_NAMES = {Role.ROLE_SYSTEM: "system", Role.ROLE_USER: "user", Role.ROLE_ASSISTANT: "assistant"}


class ChatTemplate:
    """The tokenizer of the base model."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        if self._tokenizer.chat_template is None:
            raise ValueError(f"{model}: its tokenizer has no chat template, so it cannot chat")

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of the conversation, ending where the assistant is to speak.

        Raises Refusal INVALID_ARGUMENT if a message holds one of the template's own tokens (`<|im_start|>` and the
        like): it would be read as a turn that nobody took.
        """
        for index, message in enumerate(messages):
            for token in self._tokenizer.all_special_tokens:
                if token in message.content:
                    raise invalid(f"messages[{index}].content", f"holds {token}, which only the chat template may use")
        conversation = [{"role": _NAMES[message.role], "content": message.content} for message in messages]
        ids = self._tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return tuple(ids)
