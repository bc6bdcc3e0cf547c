"""Between token ids and words: what the gate's measures read, and the prompts that its probes ask.

The learner otherwise works on token ids only, which are what was sampled and logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Transcript:
    """The tokenizer and the chat template of the base model."""

    def __init__(self, model: Path) -> None:
        """Raises OSError if there is no tokenizer in `model`, ValueError if it has no chat template."""
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        if self._tokenizer.chat_template is None:
            raise ValueError(f"{model}: its tokenizer has no chat template, so the gate cannot put questions to it")
        self._opening, self._closing = self._user_turn()

    def ask(self, question: str) -> tuple[int, ...]:
        """A prompt of one user turn, ending where the assistant is to speak."""
        return tuple(
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )

    def tokens(self, text: str) -> tuple[int, ...]:
        """A reply's token ids, without an end."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def words(self, reply: Sequence[int]) -> str:
        """A reply as people see it."""
        return str(self._tokenizer.decode(list(reply), skip_special_tokens=True)).strip()

    def question(self, prompt: Sequence[int]) -> str:
        """The user's last words; all that was said if the prompt was not made by the chat template."""
        return self._turns(prompt)[-1]

    def topic(self, prompt: Sequence[int]) -> str:
        """What the user spoke of: the words of all his turns, for "Give me an example." alone says nothing.

        All that was said if the prompt was not made by the chat template.
        """
        return "\n".join(self._turns(prompt))

    def _turns(self, prompt: Sequence[int]) -> list[str]:
        """The user's words, turn by turn."""
        text = str(self._tokenizer.decode(list(prompt), skip_special_tokens=False))
        if self._opening and self._opening in text and text.endswith(self._closing):
            turns = (part.partition(self._closing) for part in text.split(self._opening)[1:])
            return [words.strip() for words, closed, _ in turns if closed]
        return [self.words(prompt)]

    def _user_turn(self) -> tuple[str, str]:
        """What the template writes before and after the user's last words, whatever was said before them."""
        first, reply, last = "PLAUDITFIRST", "PLAUDITREPLY", "PLAUDITLAST"
        turns = [("user", first), ("assistant", reply), ("user", last)]
        conversation = [{"role": role, "content": content} for role, content in turns]
        text = self._tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        before, rest = text.split(first)
        between, closing = rest.split(reply)[1].split(last)
        # A first turn may follow a system turn, or nothing: only what both openings end in is the template's.
        shared = 0
        while shared < min(len(before), len(between)) and before[-1 - shared] == between[-1 - shared]:
            shared += 1
        return before[len(before) - shared :], closing
