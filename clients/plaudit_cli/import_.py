"""`plaudit import`: feedback that people already have, into a deployment's event log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plaudit_cli import learner_program
from plaudit_cli.common import fail


def import_(
    file: Annotated[Path, typer.Argument(help="JSON Lines: messages, reply, thumb | rating | preferred_over, …")],
    *,
    data: Annotated[Path, typer.Option(help="The deployment's directory, as of `plaudit up`.")] = Path(".plaudit"),
    model: Annotated[str, typer.Option(help="The deployment's: smollm2, or a directory.")] = "smollm2",
    event_log: Annotated[
        str | None,
        typer.Option(
            envvar="PLAUDIT_EVENT_LOG", help="sqlite:PATH or kafka://HOST:PORT; default: the SQLite file in --data."
        ),
    ] = None,
) -> None:
    """Import feedback: it trains the reward model. The learner may be running; the same file twice changes nothing."""
    key = data / "user.key"
    if not key.exists():
        fail(
            f"{data} is no deployment's directory (there is no {key.name}): start one with `plaudit up`, or give --data"
        )
    embedded = data / "events.sqlite"
    if event_log is None and not embedded.exists():
        fail(f"there is no {embedded}: a deployment with Kafka wants --event-log kafka://HOST:PORT")
    learner_program.run(
        "experience.import_feedback",
        str(file),
        f"--event-log={event_log or f'sqlite:{embedded}'}",
        f"--user-key-file={key}",
        f"--state-dir={data / 'learner'}",
        f"--model={model}",
    )
