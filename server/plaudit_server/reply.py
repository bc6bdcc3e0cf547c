"""From sampled tokens to a reply: its text, its stop strings, and why it ended. The same for every engine.

token ids ──DecodeStream──▶ text ──┬─▶ held back while it may become a stop string
                                   └─▶ Tokens.text
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from plaudit_server.engine import EngineError, FinishReason, Generation, Tokens


class ReplyMaker:
    """What every reply of one model shares: its tokenizer, the tokens that end a reply, and how long one may be."""

    def __init__(self, model: Path, max_context: int) -> None:
        """Reads `tokenizer.json`, `generation_config.json` and `config.json`; raises EngineError if they do not fit."""
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing narrower
            raise EngineError(f"model {model.name}: tokenizer.json cannot be read: {error}") from error
        self.eos_token_ids = _eos_token_ids(model)
        self.max_context = max_context

    def reply(self, generation: Generation) -> Reply:
        """A reply to be filled; raises EngineError if it could outgrow the context."""
        wanted = len(generation.prompt_token_ids) + generation.sampling.max_tokens
        if not generation.prompt_token_ids or wanted > self.max_context:
            raise EngineError(
                f"prompt ({len(generation.prompt_token_ids)} tokens) and max_tokens ({generation.sampling.max_tokens}) "
                f"must be at least 1 and at most {self.max_context} together"
            )
        return Reply(self.tokenizer, self.eos_token_ids, generation)


class Reply:
    """One reply as it grows; made by engines, one for each generation."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: frozenset[int], generation: Generation) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._sampling = generation.sampling
        # Primed with the prompt, for tokenizers that strip the space before a text's first word.
        self._stream = DecodeStream(ids=list(generation.prompt_token_ids), skip_special_tokens=True)
        self._undecoded: list[int] = []  # tokens since the last whole character
        self._held = ""  # text that may yet become a stop string
        self._length = 0
        self.finish_reason: FinishReason | None = None

    def add(self, token_ids: Sequence[int], logprobs: Sequence[float]) -> Tokens:
        """What to send for newly sampled tokens. Those after the end of the reply are dropped."""
        text = ""
        taken = 0
        while taken < len(token_ids) and self.finish_reason is None:
            text += self._add(token_ids[taken])
            taken += 1
        return Tokens(text, tuple(token_ids[:taken]), tuple(logprobs[:taken]), self.finish_reason)

    def _add(self, token_id: int) -> str:
        self._length += 1
        if token_id in self._eos_token_ids:
            self.finish_reason = FinishReason.STOP
            return self._release(self._flush(), last=True)
        self._undecoded.append(token_id)
        text = self._decode(token_id)
        last = self._length == self._sampling.max_tokens
        if last:
            text += self._flush()
        text = self._release(text, last=last)
        if last and self.finish_reason is None:
            self.finish_reason = FinishReason.LENGTH
        return text

    def _decode(self, token_id: int) -> str:
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:  # noqa: BLE001  (tokenizers raises nothing narrower)
            # "Invalid prefix": some tokenizers decode a longer sequence to a text that does not begin with that of the
            # shorter one, and the stream then refuses every further token. Go on from here with a new one.
            self._stream = DecodeStream(skip_special_tokens=True)
            text = self._stream.step(self._tokenizer, token_id)
        if text is None:  # part of a character, or a special token
            return ""
        self._undecoded.clear()
        return str(text)

    def _flush(self) -> str:
        """The text of tokens that will never be a whole character: replacement characters."""
        text: str = self._tokenizer.decode(self._undecoded, skip_special_tokens=True)
        self._undecoded.clear()
        return text

    def _release(self, text: str, *, last: bool) -> str:
        """What of the held text and `text` may be sent; sets finish_reason when a stop string is complete."""
        if not self._sampling.stop:
            return text
        text = self._held + text
        self._held = ""
        met = [(start + len(stop), start) for stop in self._sampling.stop if (start := text.find(stop)) >= 0]
        if met:  # the one complete first, as if text came a character at a time
            self.finish_reason = FinishReason.STOP
            return text[: min(met)[1]]
        if last:
            return text
        held = max((_overlap(text, stop) for stop in self._sampling.stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _eos_token_ids(model: Path) -> frozenset[int]:
    """`eos_token_id` of generation_config.json, else of config.json: a number or a list of them."""
    for name in ("generation_config.json", "config.json"):
        file = model / name
        if not file.exists():
            continue
        config: dict[str, Any] = json.loads(file.read_text())
        eos = config.get("eos_token_id")
        if eos is not None:
            return frozenset(eos if isinstance(eos, list) else [eos])
    raise EngineError(f"model {model.name}: neither generation_config.json nor config.json names an eos_token_id")
