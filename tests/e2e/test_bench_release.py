"""`make bench-release SIZE=small`: harmful versions are rolled back, equal ones are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]


def test_harmful_versions_give_few_replies() -> None:
    command = [sys.executable, "bench/release.py", "--size", "small"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=380, check=False)
    last = json.loads(ended.stdout.splitlines()[-1])
    assert ended.returncode == 0, last
    assert (last["bench"], last["size"], last["pass"]) == ("release", "small", True)
    kinds = last["figures"]["kinds"]
    assert list(kinds) == ["flipped", "flattery", "runaway", "garbage", "equal"]
    assert all(set(found["promote_always"]) == {last["figures"]["period"]} for found in kinds.values())
    assert all(0 < max(found["served"]) < last["figures"]["period"] for found in kinds.values())
    assert all(found["gate"][0] for kind, found in kinds.items() if kind != "equal"), "the gate refuses each, too"
