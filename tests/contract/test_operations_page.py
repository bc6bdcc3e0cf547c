"""The runbook is true where that can be checked: its commands, flags, values, metrics, alerts and table exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup

from bench import capacity
from plaudit_cli.main import COMMANDS, load
from tests.helm import settings_schema

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
RULES = sorted((ROOT / "helm" / "plaudit" / "rules").glob("*.yaml"))
VALUES = yaml.safe_load((ROOT / "helm" / "plaudit" / "values.yaml").read_text())
HEADINGS = re.findall(r"^## (Plaudit\w+)$", PAGE, re.MULTILINE)


def commands(page: str) -> Iterator[list[str]]:
    """The words of every `plaudit …`, in code within a line or in a block."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", page, flags=re.MULTILINE | re.DOTALL))
    for line in lines:
        words = line.removeprefix("in-server ").split("|")[0].strip()
        if re.match(r"plaudit [a-z]", words):
            yield shlex.split(words, comments=True)


def _check(words: list[str]) -> None:
    """Raises an error that says "No such …" or "Missing …" for a command, flag or argument that is not there."""
    _, name, *rest = words
    assert name in COMMANDS, f"No such command {name}"
    command = load(name)
    while isinstance(command, TyperGroup):
        with command.make_context(name, rest, resilient_parsing=True) as context:
            name, *rest = rest
            command = command.get_command(context, name)
            assert command is not None, f"No such command {name}"
    if rest == ["--help"]:
        return
    try:
        command.make_context(name, rest).close()
    except Exception as error:
        if "does not exist" not in str(error):  # files that are named need not be there
            raise AssertionError(str(error)) from error


def test_there_are_commands_and_the_check_sees_mistakes() -> None:
    assert len(list(commands(PAGE))) > 20
    _check(["plaudit", "policies", "rollback", "v4", "--reason", "x"])
    for wrong, says in (
        (["policies", "rollback", "v4", "--because", "x"], "No such option: --because"),
        (["policies", "show"], "Missing parameter"),
        (["policies", "demote", "v4"], "No such command"),
        (["serve"], "No such command"),
    ):
        with pytest.raises(AssertionError, match=says):
            _check(["plaudit", *wrong])


@pytest.mark.parametrize("words", list(commands(PAGE)), ids=" ".join)
def test_every_command_is_there(words: list[str]) -> None:
    _check(words)


def _code() -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", PAGE))


def test_every_value_that_is_named_is_there() -> None:
    named = {each for each in _code() if re.fullmatch(rf"({'|'.join(VALUES)})(\.\w+)+", each)}
    assert len(named) > 20
    for path in named:
        place: Any = VALUES
        for part in path.split("."):
            assert part in place, path
            place = place[part]


def test_every_setting_that_is_named_is_there() -> None:
    known: set[str] = set()
    for program in ("server", "learner"):
        known |= {name.replace("_", "-") for name in settings_schema.settings_of(program).model_fields}
    named = {each for each in _code() if re.fullmatch(r"[a-z]+(-[a-z]+)+|window|reward", each)}
    elsewhere = {
        "plaudit-user-key",
        "plaudit-receipt-keys",
        "plaudit-learner-0",
        "plaudit-server-0",
        "state-plaudit-learner-0",
    }
    assert {"outbox-limit", "votes-per-round", "kl-budget"} <= named
    assert named - elsewhere <= known


def test_the_table_is_that_of_the_bench() -> None:
    table = PAGE[PAGE.index("<!-- from here") : PAGE.index("<!-- to here")].splitlines()[1:]
    assert table == capacity.table(capacity.Load(), capacity.Measured())


def test_what_the_table_was_made_with_is_what_is_measured() -> None:
    declared = capacity.Measured()
    measured = capacity.measure_log(capacity.Load(), 500)  # what the store takes, the bench itself compares
    assert measured == pytest.approx((declared.interaction_bytes, declared.vote_bytes), rel=0.1)
    assert f"| {declared.interaction_bytes:,.0f} bytes |" in PAGE
    assert f"| {declared.vote_bytes:,.0f} bytes |" in PAGE
    assert f"| {declared.stored_bytes:,.0f} bytes, " in PAGE.replace(" bytes |", " bytes, ")
    performance = (ROOT / "docs" / "performance.md").read_text()
    assert f"| 64 | Plaudit | {declared.cpu_tokens} |" in performance
    assert f" {declared.front_seconds} |" in performance
    assert f"| ours | {declared.update_seconds} " in (ROOT / "docs" / "learning.md").read_text()


def test_each_alert_has_its_heading_once_with_look_and_do() -> None:
    assert len(HEADINGS) == len(set(HEADINGS)) > 20
    sections = re.split(r"^## (?=Plaudit)", PAGE, flags=re.MULTILINE)[1:]
    for section in sections:
        assert "\nLook: " in section or "Look as above" in section, section.splitlines()[0]
        assert "\nDo: " in section, section.splitlines()[0]


def test_the_headings_are_the_alerts() -> None:
    alerts = {
        rule["alert"]
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert set(HEADINGS) == alerts


def test_every_metric_that_is_named_is_there() -> None:
    sources = [
        file.read_text() for room in ("server", "learner", "clients", "proto") for file in (ROOT / room).rglob("*.py")
    ]
    known = set(re.findall(r"\bplaudit_[a-z_]+", "\n".join(sources)))
    for metric in re.findall(r"`(plaudit_[a-z_]+)`", PAGE):
        assert {metric, metric.removesuffix("_total")} & known, metric


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, anchor = target.partition("#")
        file = (ROOT / "docs" / path).resolve()
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target
