"""Files that are whole at every moment, after a power loss, too."""

from __future__ import annotations

import os
from pathlib import Path


def settle(unfinished: Path, file: Path) -> None:
    """Give it its name once it is on the disk: a name must not outlive a power loss that its content does not."""
    with unfinished.open("rb") as written:
        os.fsync(written.fileno())
    unfinished.replace(file)
