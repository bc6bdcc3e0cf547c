"""Files of secrets: who owned one, and whose group might read it, stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plaudit import secret_file


def test_a_new_file_is_its_makers_alone(tmp_path: Path) -> None:
    secret_file.write(tmp_path / "new", b"one")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_another_account_reads_it_goes_on_reading(tmp_path: Path) -> None:
    path = tmp_path / "callers.json"
    path.write_bytes(b"one")
    os.chown(path, 65534, 65533)
    path.chmod(0o644)
    secret_file.write(path, b"two")
    found = path.stat()
    assert path.read_bytes() == b"two"
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65533, 0o640), "never more than its group"
