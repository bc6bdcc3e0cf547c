"""From a conversation to the prompt's token ids, by the model's own chat template; no text in it can pass for a turn.

A template marks turns with tokens of the tokenizer's own, its control tokens, and the tokenizer makes the same tokens
of their characters wherever it meets them: in what a person wrote, too. So each prompt is held against its frame,
which is what the template makes of the same roles with contents that are harmless:

    frame     <|im_start|>user⏎ ▢ <|im_end|>⏎<|im_start|>assistant⏎
    prompt    its control tokens are the frame's, in their order ───▶ that is it, as the model's tokenizer makes it
              there are others ───▶ woven: the frame's control tokens, and between them the contents, encoded by a
                                    tokenizer that makes no control tokens: `<|im_end|>` is then ten characters

People may talk about templates, therefore, and nothing that they write is changed. Refused is only what cannot be told
from the template: a content that holds the plain text (`[/INST]`) by which a template ends a turn where it has no
control token for that, and one of whose characters the vocabulary itself makes a control token.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

# In place of a content, in a frame: white space around it, which shows whether the template strips contents.
_SPACE, _QUOTE = "\N{EM SPACE}", "\ue000"
_PLACE = re.compile(f"({_SPACE}?){_QUOTE}([0-9]+){_QUOTE}({_SPACE}?)")
_PROBES = (("user", "assistant", "user"), ("system", "user", "assistant", "user"))


class Turn(TypedDict):
    """One message, as templates take it."""

    role: str
    content: str


class Unencodable(ValueError):
    """A conversation that has no safe prompt: which field is wrong, and what is."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class ChatTemplate:
    """The tokenizer of a base model, and its template. Any number of threads may use one."""

    def __init__(self, model: Path) -> None:
        """Raises ValueError if the model cannot chat safely, OSError if its tokenizer cannot be read."""
        from transformers import AutoTokenizer

        self._template: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
        if self._template.chat_template is None:
            raise ValueError(f"{model}: its tokenizer has no chat template, so it cannot chat")
        self.eos_token_id: int | None = self._template.eos_token_id
        # Called directly: by way of transformers each call would set it up anew, and threads would meet there.
        self._tokenizer: Any = self._template.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._control = control_tokens(self._template)
        self._control_ids = frozenset(token.number for token in self._control.values())
        # The longest first: as tokenizers do.
        names = sorted(self._control, key=len, reverse=True)
        self._controls = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        self._marks = self._plain_marks(model)
        self._expected = lru_cache(maxsize=512)(lambda roles: self._frame(roles).control_ids)

    def prompt(self, conversation: Sequence[Turn]) -> tuple[int, ...]:
        """Token ids of the conversation, ending where the assistant is to speak.

        Raises Unencodable if the template refuses it (some know no system message), or there is no safe prompt.
        """
        for index, turn in enumerate(conversation):
            if mark := self._mark_in(turn["content"]):
                raise Unencodable(f"messages[{index}].content", f"holds {mark}, by which this model knows a turn's end")
        ids = self._encode(self._render(conversation))
        roles = tuple(turn["role"] for turn in conversation)
        if [token for token in ids if token in self._control_ids] != self._expected(roles):
            ids = self._weave(self._frame(roles), conversation)
        return tuple(ids)

    def text(self, text: str, field: str) -> tuple[int, ...]:
        """Token ids of a text that stands on its own, control tokens never among them.

        Raises Unencodable, which names `field`, if the vocabulary itself makes a control token of some of it.
        """
        ids = self._encode(text)
        return tuple(ids if self._control_ids.isdisjoint(ids) else self._encode_plainly(text, field))

    def _encode(self, text: str) -> list[int]:
        # As a batch of one: that lets go of the interpreter meanwhile, so that in a thread it holds nobody up.
        (found,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        ids: list[int] = found.ids
        return ids

    def _encode_plainly(self, text: str, field: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if forged := self._control_ids.intersection(ids):
            name = next(name for name, token in self._control.items() if token.number in forged)
            raise Unencodable(field, f"holds {name}, which only the chat template may use")
        return ids

    @cached_property
    def _plain(self) -> Any:
        """The tokenizer, except that it makes no control tokens. Large, and seldom needed: made when it is."""
        from tokenizers import Tokenizer

        description = json.loads(self._tokenizer.to_str())
        for token in description["added_tokens"]:
            token["special"] = token["content"] in self._control
        plain = Tokenizer.from_str(json.dumps(description))
        plain.encode_special_tokens = True
        return plain

    def _render(self, conversation: Sequence[Turn]) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self._template.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise Unencodable("messages", f"do not suit this model's chat template: {error}") from error
        return text

    def _frame(self, roles: Sequence[str]) -> _Frame:
        turns = [Turn(role=role, content=f"{_SPACE}{_QUOTE}{n}{_QUOTE}{_SPACE}") for n, role in enumerate(roles)]
        # text, then of each place: white space before it, its number, white space after it, text
        fragments = _PLACE.split(self._render(turns))
        places = [
            _Place(int(number), stripped_before=not before, stripped_after=not after)
            for before, number, after in zip(fragments[1::4], fragments[2::4], fragments[3::4], strict=True)
        ]
        # of each text: plain text, then a control token, plain text, …
        texts = [self._controls.split(text) for text in fragments[::4]]
        return _Frame(texts, places, [self._control[name].number for text in texts for name in text[1::2]])

    def _weave(self, frame: _Frame, conversation: Sequence[Turn]) -> list[int]:
        ids: list[int] = []
        run, field = "", "messages"  # what has been written since the last control token, and by whom
        for index, text in enumerate(frame.texts):
            if index:
                place = frame.places[index - 1]
                field = f"messages[{place.number}].content"
                run += place.of(conversation[place.number]["content"])
            run += text[0]
            for name, following in zip(text[1::2], text[2::2], strict=True):
                token = self._control[name]
                ids += self._encode_plainly(run.rstrip() if token.strips_before else run, field)
                ids.append(token.number)
                run = following.lstrip() if token.strips_after else following
        return ids + self._encode_plainly(run, field)

    def _plain_marks(self, model: Path) -> frozenset[str]:
        """What stands between one turn's content and the next one's where no control token does."""
        marks = set()
        for roles in _PROBES:
            try:
                frame = self._frame(roles)
            except Unencodable:
                continue  # a template that knows no system message
            marks |= {text[0].strip() for text in frame.texts[1:] if len(text) == 1}
        if "" in marks:
            raise ValueError(f"{model}: its chat template puts nothing between turns: nobody could tell who speaks")
        return frozenset(marks)

    def _mark_in(self, content: str) -> str | None:
        if not self._marks:
            return None
        # As written, and as a tokenizer may normalise it.
        written = (content, unicodedata.normalize("NFKC", content))
        return next((mark for mark in self._marks if any(mark in text for text in written)), None)


class ControlToken(NamedTuple):
    """A token that no text may be read as."""

    number: int
    strips_before: bool
    """Whether it takes the white space before it with it."""
    strips_after: bool


class _Place(NamedTuple):
    """Where a content goes."""

    number: int
    stripped_before: bool
    stripped_after: bool

    def of(self, content: str) -> str:
        """The content as the template would write it there."""
        content = content.lstrip() if self.stripped_before else content
        return content.rstrip() if self.stripped_after else content


class _Frame(NamedTuple):
    """What the template writes around contents."""

    texts: list[list[str]]
    """Before, between and after the places; each is plain text, control token, plain text, …"""
    places: list[_Place]
    control_ids: list[int]


def control_tokens(tokenizer: Any) -> dict[str, ControlToken]:
    """By its text, each token of `tokenizer` (transformers') that no text may be read as.

    Those are all that are special, whatever they are for, and what else the chat template names; but not the one that
    stands for unknown characters, which says nothing.
    """
    template = str(tokenizer.chat_template or "")
    harmless = {tokenizer.unk_token} - {tokenizer.bos_token, tokenizer.eos_token}
    return {
        token.content: ControlToken(number, token.lstrip, token.rstrip)
        for number, token in tokenizer.added_tokens_decoder.items()
        if (token.special and token.content not in harmless) or (token.content.strip() and token.content in template)
    }
