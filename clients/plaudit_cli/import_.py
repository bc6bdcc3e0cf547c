"""`plaudit import`: feedback that people already have, into a deployment's event log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plaudit_cli import learner_program
from plaudit_cli.common import EventLogUrl, event_log_url, fail


def import_(
    file: Annotated[Path, typer.Argument(help="JSON Lines: messages, reply, thumb | rating | preferred_over, …")],
    *,
    data: Annotated[Path, typer.Option(help="The deployment's directory, as of `plaudit up`.")] = Path(".plaudit"),
    model: Annotated[str, typer.Option(help="The deployment's: smollm2, or a directory.")] = "smollm2",
    event_log: EventLogUrl = None,
) -> None:
    """Import feedback: it trains the reward model. The learner may be running; the same file twice changes nothing."""
    key = data / "user.key"
    if not key.exists():
        fail(
            f"{data} is no deployment's directory (there is no {key.name}): start one with `plaudit up`, or give --data"
        )
    url = event_log_url(data, event_log, "a deployment with Kafka wants --event-log kafka://HOST:PORT")
    learner_program.run(
        "experience.import_feedback",
        str(file),
        f"--event-log={url}",
        f"--user-key-file={key}",
        f"--state-dir={data / 'learner'}",
        f"--model={model}",
    )
