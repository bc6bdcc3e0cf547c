"""The records that make judgements from a file what judgements given here are.

Ids are hashes of what they name, so the same file twice changes nothing. Of lines that say the same, each is another
statement: its place among them is part of its name. Nobody knows with which probability an imported reply was sampled:
its record has no log-probabilities and the version `imported`, and only the reward model learns from it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter

from plaudit.events import FEEDBACK, INTERACTIONS, Record
from plaudit.pseudonym import pseudonym
from plaudit.releases import IMPORTED
from plaudit.v1.events_pb2 import Feedback, Interaction
from plaudit.v1.feedback_pb2 import Thumb
from plaudit.v1.sampling_pb2 import FinishReason
from plaudit_learner.experience.feedback_file import Line
from plaudit_learner.template import ChatTemplate, Message


class Records:
    """What lines say, as records: a reply's before the judgements on it."""

    def __init__(self, template: ChatTemplate, key: bytes, longest: int | None, written: int) -> None:
        """key: the servers', which hashes users; longest: tokens that the model reads.

        written: when the file was last modified, in microseconds since 1970.
        """
        self.made: list[Record] = []
        self._template = template
        self._key = key
        self._longest = longest
        self._at = written
        self._said: Counter[tuple[str, str]] = Counter()
        self._known: set[str] = set()

    @property
    def replies(self) -> int:
        """How many different replies there are."""
        return len(self._known)

    def add(self, line: Line) -> None:
        """Make a line's records. Raises ValueError, which names the field, if the model cannot read it."""
        self._at += 1  # of lines without a time, the later one is later
        at = line.at(self._at)
        feedback = Feedback(
            schema_version=1,
            feedback_id=self._statement(line, at),
            response_id=self._reply(line, "reply", line.reply, at),
            policy_version=IMPORTED,
            aspect=line.aspect,
            user=pseudonym(self._key, line.user),
        )
        feedback.submitted_at.FromMicroseconds(at)
        if line.thumb is not None:
            feedback.thumb = Thumb.THUMB_UP if line.thumb == "up" else Thumb.THUMB_DOWN
        elif line.rating is not None:
            feedback.rating = line.rating
        elif line.preferred_over is not None:
            feedback.preferred_over = self._reply(line, "preferred_over", line.preferred_over, at)
        self.made.append(Record(FEEDBACK, feedback.response_id, feedback.SerializeToString()))

    def _statement(self, line: Line, at: int) -> str:
        """The id of what a line says. Without the time of the file: touched, it says nothing new."""
        # Not of the user: a plain hash of what can be guessed hides nobody.
        said = _name([line.model_dump(mode="json", exclude={"time", "user"}), None if line.time is None else at])
        self._said[said, line.user] += 1
        return _name([said, self._said[said, line.user]])

    def _reply(self, line: Line, field: str, text: str, at: int) -> str:
        """The response id of a reply; its record is made when it is first met."""
        messages = [Message(turn.role, turn.content) for turn in line.messages]
        response_id = _name([messages, text])
        if response_id in self._known:
            return response_id
        prompt, reply = self._template.prompt(messages), self._template.reply(text, field)
        if self._longest is not None and len(prompt) + len(reply) > self._longest:
            raise ValueError(f"{field}: {len(prompt) + len(reply)} tokens with its messages; at most {self._longest}")
        interaction = Interaction(
            schema_version=1,
            response_id=response_id,
            policy_version=IMPORTED,
            prompt_token_ids=prompt,
            reply_token_ids=reply,
            finish_reason=FinishReason.FINISH_REASON_STOP,
        )
        interaction.started_at.FromMicroseconds(at)
        interaction.finished_at.FromMicroseconds(at)
        self.made.append(Record(INTERACTIONS, response_id, interaction.SerializeToString()))
        self._known.add(response_id)
        return response_id


def _name(content: object) -> str:
    canonical = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return f"imported-{hashlib.sha256(canonical.encode()).hexdigest()[:32]}"
