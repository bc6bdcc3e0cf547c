"""Simulated users: each has a hidden taste, says so in its docstring, and votes accordingly.

They are declared as what they are (user ids `sim-…`): they stand in for people where a loop is watched or measured.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from importlib import import_module
from pathlib import Path

from plaudit_cli.common import CommandError
from plaudit_cli.personas.base import Persona

__all__ = ["BUILT_IN", "Persona", "PersonaError", "load"]

BUILT_IN = {
    "brief": "Brief",
    "structured": "Structured",
    "warm": "Warm",
    "curious": "Curious",
    "language": "Language",
    "torn": "Torn",
    "followup": "Followup",
}
"""Name (and module) → class."""


class PersonaError(CommandError):
    """There is no such persona; the message says what would be right."""


def load(spec: str) -> Persona:
    """The persona of that name, or of `path/to/file.py:Class`. Raises PersonaError."""
    if spec in BUILT_IN:
        persona = getattr(import_module(f"{__name__}.{spec}"), BUILT_IN[spec])()
        assert isinstance(persona, Persona)
        return persona
    path, colon, name = spec.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise PersonaError(f"persona {spec!r}: give one of {', '.join(BUILT_IN)}, or path/to/file.py:Class")
    return _from_file(Path(path), name)


def _from_file(path: Path, name: str) -> Persona:
    spec = importlib.util.spec_from_file_location(f"{__name__}.own.{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise PersonaError(f"persona {path}:{name}: there is no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
        kind = getattr(module, name, None)
        if not (inspect.isclass(kind) and issubclass(kind, Persona)):
            raise PersonaError(
                f"persona {path}:{name}: the file has no subclass of plaudit_cli.personas.Persona so named"
            )
        return kind()
    except PersonaError:
        raise
    except Exception as error:  # whatever somebody else's file raises
        raise PersonaError(f"persona {path}:{name}: {type(error).__name__}: {error}") from error
