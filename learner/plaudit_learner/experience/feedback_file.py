"""Feedback that people already have, as JSON Lines: one judgement on each line.

    {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "reply": "Because …", "thumb": "up"}

messages        the conversation before the reply, oldest first, ending with the user; roles system, user, assistant
reply           what was answered
one of
  thumb           "up" or "down"
  rating          1 (worst) to 5 (best), a whole number
  preferred_over  the text of another, worse reply to the same messages
aspect          optional; what of the reply is meant; default "quality"
user            optional; who judges, in your own words; kept as a keyed hash only
time            optional; when: ISO 8601 (UTC if it names no zone) or seconds since 1970, up to now; default: when
                the file was last modified

A later thumb or rating of the same user on the same reply and aspect replaces an earlier one; of lines without a time,
the later line is later. Lines without a user are of somebody else each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from plaudit_learner.reward.aspects import DEFAULT_ASPECT


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; give what was said")
    return text


_Text = Annotated[str, AfterValidator(_not_blank)]
_VERDICTS = ("thumb", "rating", "preferred_over")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class FeedbackFileError(ValueError):
    """The file cannot be used; the message names the file, the line and the field, and says what would be right."""


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: _Text


class Line(BaseModel):
    """One judgement."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    messages: Annotated[tuple[Turn, ...], Field(min_length=1)]
    reply: _Text
    thumb: Literal["up", "down"] | None = None
    rating: Annotated[int, Field(strict=True, ge=1, le=5)] | None = None
    preferred_over: _Text | None = None
    aspect: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\s=<>,]+$")] = DEFAULT_ASPECT
    user: Annotated[str, StringConstraints(max_length=256)] = ""
    time: datetime | None = None

    def at(self, otherwise: int) -> int:
        """When, in microseconds since 1970; `otherwise` if the line does not say."""
        return otherwise if self.time is None else (self.time - EPOCH) // timedelta(microseconds=1)

    @field_validator("messages")
    @classmethod
    def _ends_with_the_user(cls, messages: tuple[Turn, ...]) -> tuple[Turn, ...]:
        if messages[-1].role != "user":
            raise ValueError("the last message has to be the user's: the reply answers it")
        return messages

    @field_validator("time")
    @classmethod
    def _has_been(cls, time: datetime | None) -> datetime | None:
        if time is None:
            return None
        if time.tzinfo is None:
            time = time.replace(tzinfo=UTC)
        if not EPOCH <= time <= datetime.now(UTC):
            raise ValueError("give a time from 1970 to now")
        return time

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        said = [name for name in _VERDICTS if getattr(self, name) is not None]
        if len(said) != 1:
            raise ValueError(f"give exactly one of thumb, rating, preferred_over (given: {', '.join(said) or 'none'})")
        if self.preferred_over == self.reply:
            raise ValueError("preferred_over is the reply itself: give the other one")
        return self


def read(path: Path) -> list[tuple[int, Line]]:
    """(line number, judgement) of every line that is not empty. Raises FeedbackFileError at the first that is wrong."""
    try:
        text = path.read_text(encoding="utf-8").removeprefix("\ufeff")  # as some programs begin a file
    except OSError as error:
        raise FeedbackFileError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FeedbackFileError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    lines = []
    # Not splitlines(): JSON strings may hold U+2028 and its like, which are no ends of lines there.
    for number, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                lines.append((number, Line.model_validate_json(content)))
            except ValidationError as error:
                raise FeedbackFileError(f"{path}:{number}: {_first(error)}") from None
    if not lines:
        raise FeedbackFileError(f"{path}: holds no judgements; give one JSON object on each line")
    return lines


def written(path: Path) -> int:
    """When the file was last modified, in microseconds since 1970; not before that, nor after now. Raises OSError."""
    return max(0, min(path.stat().st_mtime_ns, time.time_ns()) // 1000)


def standing(lines: Sequence[tuple[int, Line]], written: int) -> list[tuple[int, Line]]:
    """The lines that no later one replaces, as the experience store has it once they are imported.

    Thumbs and ratings of one user on one reply and aspect replace one another, and so does the same preference.
    """
    last: dict[object, tuple[int, int, Line]] = {}
    for number, line in lines:
        slot = (line.user or number, line.messages, line.reply, line.aspect, line.preferred_over)
        at = line.at(written + number)  # of lines without a time, the later one is later
        if slot not in last or at >= last[slot][0]:
            last[slot] = at, number, line
    return sorted(((number, line) for _, number, line in last.values()), key=lambda row: row[0])


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    return f"{field}: {problem['msg']}" if field else problem["msg"]
