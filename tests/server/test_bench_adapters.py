"""`make bench-adapters SIZE=small`: everything is measured, and Plaudit's engine samples what transformers would."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_small_size_measures_everything() -> None:
    command = [sys.executable, "bench/adapters.py", "--size", "small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["figures"]["ratios"]) == {f"decode 4 {name}" for name in ("plain", "none", "stable", "canary")}
    assert told["figures"]["stall"]["longest_gap_ms"]["min"] > 0
    assert max(found["max"] for found in told["figures"]["distance"].values()) < 1e-3  # float32
