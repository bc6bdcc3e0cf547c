"""What tells one state of a file from another, for programs that take up a file when it changes."""

from __future__ import annotations

import os
from pathlib import Path

FileState = tuple[str, int, int, int] | None


def file_state(file: Path) -> FileState:
    """Its name, inode, time of change and size; None if it cannot be looked at."""
    try:
        state = os.stat(file)
    except OSError:
        return None
    return file.name, state.st_ino, state.st_mtime_ns, state.st_size
