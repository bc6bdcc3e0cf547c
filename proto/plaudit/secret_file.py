"""Files that hold secrets, or say who may do what: whole at every moment, and their owner's alone."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

LEAST_BYTES = 32


def read_key(path: Path) -> bytes:
    """The key in a file. Raises OSError if it cannot be read, ValueError if it is shorter than 32 bytes."""
    key = path.read_bytes()
    if len(key) < LEAST_BYTES:
        raise ValueError(f"{path}: the key has {len(key)} bytes; it needs at least {LEAST_BYTES} random ones")
    return key


def make_key(path: Path) -> None:
    """Put 32 random bytes into a file, unless it is there already. Raises OSError."""
    if not path.exists():
        write(path, secrets.token_bytes(LEAST_BYTES))


def write(path: Path, content: bytes) -> None:
    """Replace a file: readers see the old content or the new one. Raises OSError.

    A new file is its maker's alone (0600). One that was there keeps its owner and group, and what its group may read:
    so a server under another account can read what root has written.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mkstemp's files are 0600
    try:
        with os.fdopen(descriptor, "wb") as stream:
            with suppress(FileNotFoundError):
                before = path.stat()
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, before.st_mode & 0o640)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
