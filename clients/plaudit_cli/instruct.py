"""`plaudit instruct`: instruction tuning, done by a program of the learner's packages."""

from __future__ import annotations

import typer

from plaudit_cli import learner_program

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# Its options are the learner's settings, which say themselves what they take.
@app.command(
    "instruct", add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def instruct(context: typer.Context) -> None:
    """Tune the policy on instruction–output pairs, and publish the result if its held-out loss fell."""
    learner_program.run("instruct", *context.args, extras="learner,instruct")
