"""What every benchmark prints as its last line: one JSON object."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def report(bench: str, size: str, *, figures: Mapping[str, Any], goals: Mapping[str, bool]) -> int:
    """Print the object; `goals` says which were met. Returns the exit status: 0 if all were."""
    passed = all(goals.values())
    print(json.dumps({"bench": bench, "size": size, "pass": passed, "figures": figures, "goals": goals}))
    return 0 if passed else 1


def spread(values: Sequence[float]) -> dict[str, float]:
    """Of a figure over repetitions."""
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }
