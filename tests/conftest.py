"""Fixtures that all tests share: the tiny model, a broker, and real servers on free ports."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Before torch is imported anywhere: two spinning OpenMP threads collapse under contention.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Each test has a time limit; those of single examples would only say how busy the machine is.
settings.register_profile("plaudit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("plaudit")

pytest_plugins = ["tests.fixtures_broker", "tests.fixtures_model", "tests.fixtures_server", "tests.fixtures_tls"]
