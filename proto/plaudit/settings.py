"""Settings of the programs: typed, from flags and PLAUDIT_* variables, checked before anything heavy is imported.

A program subclasses `Settings`, writes a docstring under each field, and calls `parse`. A wrong value ends the program
with one line for each field that says what would be right; `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from plaudit import logs, tracing

ASPECTS = ("quality", "relevance", "politeness")
"""What of a reply can be voted on, unless a deployment says otherwise; the first is meant where none is named."""


class Settings(BaseSettings):
    """Base of every program's settings: `--some-flag` and PLAUDIT_SOME_FLAG name the field some_flag."""

    model_config = SettingsConfigDict(
        env_prefix="PLAUDIT_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        use_attribute_docstrings=True,
        extra="forbid",
        frozen=True,
    )


class LogSettings(Settings):
    """What every program that runs for long can be told of its logs (docs/observability.md).

    Not part of what is dumped: a round that was cut off goes on whatever is logged about it.
    """

    log_format: logs.Format = Field(default="human", exclude=True)
    """Lines for people, or a JSON object a line."""
    log_level: logs.Level = Field(default="info", exclude=True)
    """The least that is logged; debug may quote requests in what is said of failures that nobody foresaw."""


class ProgramSettings(LogSettings):
    """And of traces, where it makes any."""

    traces: bool = Field(default=False, exclude=True)
    """Send spans to where the OTEL_* variables say; needs the extra `otel`."""

    @field_validator("traces")
    @classmethod
    def _can_trace(cls, traces: bool) -> bool:
        if traces and (why := tracing.missing()):
            raise ValueError(why)
        return traces


S = TypeVar("S", bound=Settings)


def parse(settings: type[S], program: str, arguments: Sequence[str] | None = None) -> S:
    """The settings from `arguments` (default: the command line) and the environment.

    Exits with status 2 and one line for each wrong field; with 0 after --help.
    """
    settings.model_config["cli_prog_name"] = program
    try:
        return CliApp.run(settings, cli_args=list(sys.argv[1:] if arguments is None else arguments))
    except ValidationError as error:
        for problem in error.errors():
            flag = "--" + str(problem["loc"][0]).replace("_", "-") if problem["loc"] else program
            print(f"{program}: {flag}: {problem['msg']} (got {problem['input']!r})", file=sys.stderr)
    except SettingsError as error:
        print(f"{program}: {error}", file=sys.stderr)
    sys.exit(2)
