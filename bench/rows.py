"""Rows of figures that are kept: what a benchmark has measured already is not measured again.

A row is a line of JSON with `key`, all that it follows from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"


class Rows:
    """A file of rows, one a line, each found again by its key."""

    def __init__(self, file: Path) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self._rows: dict[str, Row] = {}
        for line in lines:
            try:
                row = json.loads(line)
                self._rows[_name(row["key"])] = row
            except (ValueError, KeyError):  # cut off while it was written: computed again
                continue

    def get(self, key: Mapping[str, Any]) -> Row | None:
        """The row of that very key."""
        return self._rows.get(_name(key))

    def matching(self, key: Mapping[str, Any]) -> list[Row]:
        """All rows whose key says this, and more, in their order."""
        return [row for row in self._rows.values() if key.items() <= row["key"].items()]

    def add(self, key: Mapping[str, Any], figures: Mapping[str, Any]) -> Row:
        """Keep a row; it is on the disk when this returns."""
        row = {"key": dict(key), **figures}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        torn = self._file.exists() and not self._file.read_bytes().endswith(b"\n") and self._file.stat().st_size > 0
        with self._file.open("a") as out:
            out.write(("\n" if torn else "") + json.dumps(row) + "\n")
        self._rows[_name(key)] = row
        return row


def digest(key: Mapping[str, Any]) -> str:
    """A short name of a key, for a file."""
    return hashlib.sha256(_name(key).encode()).hexdigest()[:16]


def _name(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
