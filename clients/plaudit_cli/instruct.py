"""`plaudit instruct`: instruction tuning, done by a program of the learner's packages."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import typer

from plaudit_cli.common import fail

# Module → distribution: what the extras `learner` and `instruct` bring.
_NEEDED = {
    "plaudit_learner": "plaudit",
    "datasets": "datasets",
    "jinja2": "Jinja2",
    "matplotlib": "matplotlib",
    "peft": "peft",
    "py3langid": "py3langid",
    "pydantic_settings": "pydantic-settings",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "torchmetrics": "torchmetrics",
    "transformers": "transformers",
    "trl": "trl",
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# Its options are the learner's settings, which say themselves what they take.
@app.command(
    "instruct", add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def instruct(context: typer.Context) -> None:
    """Tune the policy on instruction–output pairs, and publish the result if its held-out loss fell."""
    missing = [name for module, name in _NEEDED.items() if find_spec(module) is None]
    if missing:
        fail(
            f"instruct needs packages that are not installed: {', '.join(missing)}; `make instruct` installs them, and "
            "so does pip install 'plaudit[learner,instruct]'"
        )
    # In this process's place, so that signals and exit status are its own.
    os.execv(sys.executable, [sys.executable, "-m", "plaudit_learner.instruct", *context.args])  # noqa: S606
