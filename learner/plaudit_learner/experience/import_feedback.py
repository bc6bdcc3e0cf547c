"""`plaudit import`: feedback from a file into the event log, as if it had been given here.

Through the log and not into the experience store: the store has one writer, the learner, which may be running; and what
comes through the log is checked by intake, read again by a learner with a new store, and erased like everything else.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic_settings import CliPositionalArg

from plaudit import secret_file
from plaudit.base_model import PACKAGED
from plaudit.settings import Settings, parse
from plaudit_learner.config import EXPERIENCE
from plaudit_learner.experience.feedback_file import FeedbackFileError, read, written

PROGRAM = "plaudit import"
_BATCH = 500


class ImportSettings(Settings):
    """Puts feedback that people already have into the event log. docs/reward-model.md says which fields a line has."""

    file: CliPositionalArg[Path]
    """One judgement on each line."""
    event_log: str
    """sqlite:PATH or kafka://HOST:PORT[,HOST:PORT…]; the deployment's."""
    user_key_file: Path
    """The servers': users are kept as the same hash as theirs."""
    state_dir: Path | None = None
    """The learner's directory, if it is here: then it is made sure that the model is the one it learns with."""
    model: str = PACKAGED
    """The base model of the deployment, whose chat template and tokenizer are used."""
    model_cache: Path = Path("~/.cache/plaudit")
    """Where the packaged model is kept once converted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    settings = parse(ImportSettings, PROGRAM, arguments)
    from plaudit.base_model import ModelNotFound
    from plaudit.events import EventLogUnavailable

    try:
        print(run(settings))
    except (FeedbackFileError, ModelNotFound, EventLogUnavailable, OSError, ValueError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except sqlite3.Error as error:  # the event log's are EventLogUnavailable
        print(f"{PROGRAM}: {settings.state_dir}/{EXPERIENCE}: {error}", file=sys.stderr)
        return 1
    return 0


def run(settings: ImportSettings) -> str:
    """Import the file; returns what was done, in words. Nothing is imported if any line is wrong.

    Raises FeedbackFileError, ModelNotFound, EventLogUnavailable, OSError, ValueError (another base model) and
    sqlite3.Error (the experience store cannot be used).
    """
    lines = read(settings.file)
    key = secret_file.read_key(settings.user_key_file)

    from plaudit import base_model
    from plaudit.events import open_log
    from plaudit_learner.experience.imported import Records
    from plaudit_learner.experience.store import Experience
    from plaudit_learner.template import ChatTemplate

    model = base_model.resolve(settings.model, settings.model_cache.expanduser())
    if settings.state_dir is not None and (settings.state_dir / EXPERIENCE).exists():
        store = Experience(settings.state_dir / EXPERIENCE)
        try:
            store.belongs_to(base_model.fingerprint(model))
        finally:
            store.close()
    longest = json.loads((model / "config.json").read_text()).get("max_position_embeddings")
    # As old as its file, and not as this import: imported again, it is no newer than it was.
    records = Records(ChatTemplate(model), key, longest, written(settings.file))
    for number, line in lines:
        try:
            records.add(line)
        except ValueError as error:
            raise FeedbackFileError(f"{settings.file}:{number}: {error}") from None
    with open_log(settings.event_log) as log:
        for start in range(0, len(records.made), _BATCH):
            log.append(records.made[start : start + _BATCH])
    return f"{len(lines)} judgements on {records.replies} replies imported; the learner takes them in as it runs"


if __name__ == "__main__":
    sys.exit(main())
