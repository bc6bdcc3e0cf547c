"""From an example to token ids: a prompt, and the output tokens that alone are learnt.

chat    the prompt is, token by token, what a server makes of the same messages, and the output ends as replies end
tags    `<指令>instruction</指令> <输出>output</输出>`, the article's annotation, for models without a template; a
        server never sends such a prompt
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plaudit.chat_template import control_tokens
from plaudit_learner.instruct.data import Example, FieldError
from plaudit_learner.policy import PromptReply

TAGS = ("<指令>", "</指令>", "<输出>", "</输出>")


class Annotator:
    """One annotation with one model's tokenizer. Raises ValueError if the model cannot be annotated for that way."""

    def __init__(self, model: Path, style: str) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
        self.style = style
        self._reserved = [*control_tokens(self.tokenizer), *(TAGS if style == "tags" else ())]
        if style == "chat" and self.tokenizer.chat_template is None:
            raise ValueError(f"{model.name} has no chat template: give --annotate tags, or a model that has one")
        self._end = self._end_of_reply(_eos_ids(model))

    @property
    def as_served(self) -> bool:
        """Whether prompts are those that servers make, or servers can make none: the model has no template."""
        return self.style == "chat" or self.tokenizer.chat_template is None

    def encode(self, example: Example) -> PromptReply:
        """Raises FieldError if a text holds what only the annotation may use: it would be read as a turn of its own."""
        for content in (*(content for _, content in example.turns), example.output):
            for token in self._reserved:
                if token in content:
                    raise FieldError("the text", f"holds {token}, which only the annotation may use")
        if self.style == "chat":
            messages = [{"role": role, "content": content} for role, content in example.turns]
            prompt = self._template(messages, add_generation_prompt=True)
            # On its own, as the server samples it: a tokenizer might merge its beginning with the prompt's end.
            reply = self._plain(example.output)
        else:
            prompt = self.tokenizer(_tagged(example))["input_ids"]
            reply = self._plain(example.output + TAGS[3])
        return PromptReply(tuple(prompt), (*reply, self._end), True)

    def decode(self, reply: tuple[int, ...]) -> str:
        """The output that these tokens say."""
        text: str = self.tokenizer.decode(list(reply), skip_special_tokens=True)
        return text.split(TAGS[3], maxsplit=1)[0].strip() if self.style == "tags" else text.strip()

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _template(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        ids: list[int] = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
        return ids

    def _end_of_reply(self, eos_ids: set[int]) -> int:
        """The token that ends a reply: of those at which the engines stop, the one that the template writes."""
        if self.style == "chat":
            ids = self._template([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
            written = [token for token in ids if token in eos_ids]
            if written:
                return written[-1]
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the model's tokenizer names no end-of-sequence token")
        return int(self.tokenizer.eos_token_id)


def _tagged(example: Example) -> str:
    """All up to where the output is to begin."""
    parts = []
    for role, content in example.turns:
        if role == "user":
            parts.append(f"{TAGS[0]}{content}{TAGS[1]} {TAGS[2]}")
        else:
            parts.append(f"{content}{TAGS[3]}\n" if role == "assistant" else f"{content}\n")
    return "".join(parts)


def _eos_ids(model: Path) -> set[int]:
    from transformers import AutoConfig, GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(model, local_files_only=True).eos_token_id
    except OSError:
        eos = None
    if eos is None:
        eos = AutoConfig.from_pretrained(model, local_files_only=True).eos_token_id
    return set() if eos is None else {eos} if isinstance(eos, int) else set(eos)
