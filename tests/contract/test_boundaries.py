"""`server`, `learner` and `clients` share the contract and never import one another (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "proto": {"plaudit"},
    "server": {"plaudit", "plaudit_server"},
    "learner": {"plaudit", "plaudit_learner"},
    "clients": {"plaudit", "plaudit_client", "plaudit_cli", "plaudit_gateway"},
}
FILES = [(room, file) for room in ALLOWED for file in sorted((ROOT / room).rglob("*.py")) if "_pb2" not in file.name]


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names if name.startswith("plaudit")}


@pytest.mark.parametrize(("room", "file"), FILES, ids=[str(file.relative_to(ROOT)) for _, file in FILES])
def test_imports_only_what_its_room_may(room: str, file: Path) -> None:
    assert imported(file) <= ALLOWED[room]


def test_the_test_sees_imports() -> None:
    assert imported(ROOT / "server/plaudit_server/app.py") >= {"plaudit", "plaudit_server"}
