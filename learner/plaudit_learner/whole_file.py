"""Files that are whole at every moment, and directories that are gone for good, after a power loss, too."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Where to write it. It gets its name once it is on the disk, for a name must not outlive a power loss that its
    content does not; and none if writing it failed.
    """
    unfinished = file.with_suffix(".unfinished")
    yield unfinished
    with unfinished.open("rb") as written:
        os.fsync(written.fileno())
    unfinished.replace(file)


def remove(directory: Path) -> None:
    """Remove a directory with all that is in it, if it is there. Raises OSError if any of it stays."""
    try:
        if directory.exists():
            shutil.rmtree(directory)
        parent = os.open(directory.parent, os.O_RDONLY)  # also if it is gone: nobody may have waited for that
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        raise OSError(f"{directory} cannot be removed: {error}") from error
