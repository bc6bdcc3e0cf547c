"""Settings: flags, environment, and words for what is wrong."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field, model_validator

from plaudit.settings import Settings, parse


class Example(Settings):
    """An example."""

    count: int = Field(default=1, ge=1)
    """How many."""
    kind: Literal["a", "b"] = "a"
    """Which."""
    low: int = 0
    """The lower one."""
    high: int = 10
    """The higher one."""

    @model_validator(mode="after")
    def _check(self) -> Example:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self


def test_flags_win_over_the_environment_and_that_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_COUNT", "2")
    monkeypatch.setenv("PLAUDIT_KIND", "b")
    settings = parse(Example, "example", ["--count=3"])
    assert (settings.count, settings.kind, settings.low) == (3, "b", 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count=0"], "example: --count: Input should be greater than or equal to 1 (got '0')"),
        (["--count=x"], "example: --count: Input should be a valid integer"),
        (["--kind=c"], "example: --kind: Input should be 'a' or 'b' (got 'c')"),
        (["--low=11"], "low (11) must not exceed high (10)"),
        (["--unknown=1"], "unknown"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Example, "example", arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_help_shows_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Example, "example", ["--help"])
    assert ended.value.code == 0
    assert "How many." in capsys.readouterr().out
