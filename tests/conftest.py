"""Fixtures that all tests share: the tiny model, a broker, and real servers on free ports."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported anywhere: two spinning OpenMP threads collapse under contention.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Each test has a time limit; those of single examples would only say how busy the machine is.
settings.register_profile("plaudit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("plaudit")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share a process, and its fixtures; those of vLLM all share one: two engines would fight for the
    cores that vLLM binds its threads to."""
    for item in items:
        vllm = item.get_closest_marker("vllm") is not None
        item.add_marker(pytest.mark.xdist_group("vllm" if vllm else item.path.name))


pytest_plugins = [
    "tests.fixtures_broker",
    "tests.fixtures_model",
    "tests.fixtures_server",
    "tests.fixtures_tls",
    "tests.fixtures_traces",
]
