"""The threat model names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_of_the_threat_model_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    model = page[page.index("## The threat model") : page.index("**Trusted**")]
    rows = [line for line in model.splitlines() if line.startswith("|")][2:]
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^(?:async )?def (test_\w+)\(", tests, re.MULTILINE))
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.split("|")[4])
        assert named, row
        assert set(named) <= there, row
