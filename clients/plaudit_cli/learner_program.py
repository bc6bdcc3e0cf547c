"""Commands whose work needs the learner's packages: one of the learner's own programs takes this process's place."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import NoReturn

from plaudit_cli.common import fail

# Module → distribution.
_LEARNER = {
    "peft": "peft",
    "pydantic_settings": "pydantic-settings",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "transformers": "transformers",
}
_INSTRUCT = {
    "datasets": "datasets",
    "jinja2": "Jinja2",
    "matplotlib": "matplotlib",
    "py3langid": "py3langid",
    "torchmetrics": "torchmetrics",
    "trl": "trl",
}
_EXTRAS = {"learner": _LEARNER, "learner,instruct": _LEARNER | _INSTRUCT}


def run(module: str, *arguments: str, extras: str = "learner") -> NoReturn:
    """Run a module of the learner with this terminal; signals and exit status are its own."""
    missing = [name for module, name in _EXTRAS[extras].items() if find_spec(module) is None]
    if missing:
        fail(
            f"this needs packages that are not installed: {', '.join(missing)}; `make up` installs them, and so does "
            f"pip install 'plaudit[{extras}]'"
        )
    os.execv(sys.executable, [sys.executable, "-m", f"plaudit_learner.{module}", *arguments])  # noqa: S606
