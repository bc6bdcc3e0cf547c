"""Fixtures that all tests share: the tiny model, a broker, and real servers on free ports."""

from __future__ import annotations

import os
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# Before torch is imported anywhere: two spinning OpenMP threads collapse under contention.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# In the background of a shell without job control SIGINT is ignored, and programs under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Each test has a time limit; those of single examples would only say how busy the machine is.
settings.register_profile("plaudit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("plaudit")


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """A file's tests share a process, and its fixtures; files with tests of vLLM all share one: two engines would fight
    for the cores that vLLM binds its threads to.

    `--dist loadgroup` is meant for this, and groups nothing: xdist 3.8 marks names in a way that pytest 9.2 ignores.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid.partition("::")[0])


@cache
def _group(file: str) -> str:
    return "vllm" if "mark.vllm" in (Path(__file__).parents[1] / file).read_text() else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


pytest_plugins = [
    "tests.fixtures_broker",
    "tests.fixtures_model",
    "tests.fixtures_server",
    "tests.fixtures_tls",
    "tests.fixtures_traces",
]
