"""Fixtures that all tests share: the tiny model, a broker, and real servers on free ports."""

from __future__ import annotations

import os

# Before torch is imported anywhere: two spinning OpenMP threads collapse under contention.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

pytest_plugins = ["tests.fixtures_broker", "tests.fixtures_model", "tests.fixtures_server"]
