"""What a round works from, settled when it begins and kept on disk until it ends.

A learner that is killed within a round goes on with the same round: the same prompts, reward model and settings,
whatever votes came in meanwhile. So it ends with the very weights that it would have ended with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plaudit_learner.ppo.settings import ImproveSettings

_INPUTS = "inputs.json"
CHECKPOINT = "checkpoint.pt"

Prompts = list[tuple[int, ...]]


@dataclass(frozen=True)
class Round:
    """Made by the loop; read by all stages of one round."""

    number: int
    parent: str
    """The version that the candidate has to beat."""
    votes: int
    """Votes that stood when it began."""
    seed: int
    train: Prompts
    held_out: Prompts
    """Prompts that only the gate sees."""
    how: ImproveSettings

    def keep(self, directory: Path, settings: Mapping[str, Any]) -> None:
        """Write it into an empty directory, in which the checkpoint will be. `settings`: the learner's, as JSON."""
        drop(directory)
        directory.mkdir(parents=True)
        unfinished = directory / "unfinished"
        with unfinished.open("w") as out:
            json.dump({"settings": settings, "round": asdict(self)}, out)
            out.flush()
            os.fsync(out.fileno())
        unfinished.replace(directory / _INPUTS)


def kept(directory: Path, settings: Mapping[str, Any]) -> Round | None:
    """The round that was begun with these settings and not ended; None if there is none."""
    try:
        found = json.loads((directory / _INPUTS).read_text())
        if found["settings"] != dict(settings):
            return None
        fields = found["round"]
        for name in ("train", "held_out"):
            fields[name] = [tuple(prompt) for prompt in fields[name]]
        return Round(**{**fields, "how": ImproveSettings(**fields["how"])})
    except (OSError, ValueError, KeyError, TypeError):  # of another release of this program: begun anew
        return None


def drop(directory: Path) -> None:
    """Remove what is kept of a round."""
    shutil.rmtree(directory, ignore_errors=True)
