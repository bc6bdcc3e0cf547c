"""`plaudit evaluate`: how good is what was learnt, on data that it was not learnt from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plaudit_cli import learner_program
from plaudit_cli.common import fail

app = typer.Typer(
    name="evaluate",
    help="Judge what was learnt by data that it was not learnt from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _evaluate() -> None:
    """Makes this a group, whatever the number of its commands."""


@app.command("reward-model")
def reward_model(
    *,
    data: Annotated[Path, typer.Option(help="Judgements, JSON Lines as `plaudit import` takes them.")],
    learner: Annotated[Path, typer.Option(help="The learner's directory.")] = Path(".plaudit/learner"),
    model: Annotated[str, typer.Option(help="The deployment's: smollm2, or a directory.")] = "smollm2",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Accuracy on pairs, AUC and calibration on thumbs, with 95 % intervals; what was trained on is left out."""
    if not (learner / "experience.sqlite").exists():
        fail(f"{learner} is no learner's directory (there is no experience.sqlite): give --learner")
    learner_program.run(
        "reward.evaluate",
        f"--data={data}",
        f"--state-dir={learner}",
        f"--model={model}",
        *(["--as-json"] if as_json else []),
    )
