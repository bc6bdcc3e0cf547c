"""Copies of versions: as many as are needed."""

from __future__ import annotations

from pathlib import Path

from plaudit.artifacts import PolicyStore
from plaudit_learner.versions import Versions


def test_copies_that_nothing_needs_are_removed(tmp_path: Path) -> None:
    versions = Versions(PolicyStore(str(tmp_path / "store")), tmp_path / "copies", tmp_path / "model", "00", 12)
    versions.forget_others("v1")  # nothing was fetched yet
    for name in ("v1", "v2", "v3", ".v4-left-by-a-kill"):
        (tmp_path / "copies" / name).mkdir(parents=True)
        (tmp_path / "copies" / name / "adapter_model.safetensors").touch()
    versions.forget_others("v0", "v2")
    assert [copy.name for copy in (tmp_path / "copies").iterdir()] == ["v2"]
