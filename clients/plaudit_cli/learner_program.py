"""Commands whose work needs the learner's packages: the learner's own program does it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import typer

from plaudit_cli.common import fail

_NEEDED = ("torch", "transformers", "peft", "pydantic_settings")


def run(module: str, *arguments: str) -> None:
    """Run a module of the learner with this terminal; a failure ends the command with the same exit status."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        fail(f"this needs the learner's packages ({', '.join(missing)} missing): pip install 'plaudit[learner]'")
    try:
        status = subprocess.run([sys.executable, "-m", f"plaudit_learner.{module}", *arguments], check=False).returncode
    except KeyboardInterrupt:
        status = 130
    if status:
        raise typer.Exit(status)
