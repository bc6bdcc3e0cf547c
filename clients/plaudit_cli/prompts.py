"""Files of prompts, and which of them are held out.

*.txt            one prompt on each line; empty lines are skipped
*.jsonl, *.json  one JSON object on each line, with one of
                 messages      [{"role": "user", "content": …}, …], ending with the user
                 prompt        text (`question` says the same)
                 instruction   text, to which `input` or `instances[0].input` is added on a line of its own
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit_cli.common import CommandError

if TYPE_CHECKING:
    from plaudit_client import Message


class PromptsError(CommandError):
    """The file cannot be used; the message names the file, the line, and what would be right."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a simulated user says: made here, read by simulation.py."""

    turns: tuple[tuple[str, str], ...]
    """(role, content), oldest first; the last one is the user's."""

    @property
    def text(self) -> str:
        """What the reply is judged against: the user's last words."""
        return self.turns[-1][1]

    @property
    def messages(self) -> list[Message]:
        """As the SDK takes it."""
        return [{"role": role, "content": content} for role, content in self.turns]  # type: ignore[typeddict-item]

    @property
    def key(self) -> str:
        """The same for the same prompt, in every file and process: sha256 of the text, in hex."""
        turns = [content if role == "user" else f"{role}: {content}" for role, content in self.turns]
        return hashlib.sha256("\n".join(turns).encode()).hexdigest()


def user(text: str) -> Prompt:
    """A prompt of one turn."""
    return Prompt((("user", text),))


def read(path: Path) -> list[Prompt]:
    """Every prompt of the file, in its order. Raises PromptsError."""
    if path.suffix not in {".txt", ".jsonl", ".json"}:
        raise PromptsError(f"{path}: give a .txt or .jsonl file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PromptsError(f"{path}: cannot be read: {error.strerror}") from error
    parse = _plain if path.suffix == ".txt" else _json
    prompts = []
    # By line feeds only: JSON may hold other line separators (U+2028) inside its strings.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode().strip()
            if text:
                prompts.append(parse(text))
        except UnicodeDecodeError as error:
            raise PromptsError(f"{path}, line {number}: is not UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise PromptsError(f"{path}, line {number}: {error}") from error
    if not prompts:
        raise PromptsError(f"{path}: holds no prompt")
    return prompts


def split(prompts: Sequence[Prompt], held_out: float) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held-out): about the share `held_out` of them, always the same ones, whatever else is in the file."""
    train: list[Prompt] = []
    rest: list[Prompt] = []
    for prompt in prompts:
        (rest if int(prompt.key[:16], 16) < held_out * 2**64 else train).append(prompt)
    return train, rest


def _plain(line: str) -> Prompt:
    return user(_sendable("the prompt", line))


def _json(line: str) -> Prompt:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(record, dict):
        raise ValueError("is not a JSON object")
    if "messages" in record:
        return _conversation(record["messages"])
    for name in ("prompt", "question"):
        if name in record:
            return user(_sendable(name, record[name]))
    if "instruction" in record:
        instruction = _sendable("instruction", record["instruction"])
        extra = _input(record)
        return user(f"{instruction}\n{extra}" if extra else instruction)
    raise ValueError("has none of messages, prompt, question and instruction")


def _input(record: dict[str, Any]) -> str:
    holder = record
    instances = record.get("instances")
    if "input" not in record and isinstance(instances, list) and instances and isinstance(instances[0], dict):
        holder = instances[0]
    extra = holder.get("input") or ""
    return _sendable("input", extra) if extra else ""


def _conversation(messages: object) -> Prompt:
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages is not a list of at least one message")
    turns = []
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in {"system", "user", "assistant"}:
            raise ValueError(f"messages[{index}].role is {role!r}, not system, user or assistant")
        turns.append((role, _sendable(f"messages[{index}].content", message.get("content"))))
    if turns[-1][0] != "user":
        raise ValueError("messages does not end with the user's turn")
    return Prompt(tuple(turns))


def _sendable(name: str, text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} is not a text, or an empty one")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no encoding can
        raise ValueError(f"{name} is not valid Unicode text") from error
    return text
