"""`make bench-learn SIZE=small`: both sides run, and the figures are what they say."""

from __future__ import annotations

import json

import pytest

from bench.learn import EnvironmentMissingError, conclude, environment, main
from bench.rows import RESULTS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_small_size_runs_both(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        environment(RESULTS / "work")
    except EnvironmentMissingError as error:
        pytest.skip(str(error))
    assert main(["--size", "small", "--repetitions", "2"]) == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert told["bench"] == "learn"
    assert told["pass"]
    for name in ("ours", "TRL"):
        assert told["figures"][name]["cpu_seconds"]["min"] > 0
    assert sum(told["figures"]["ours"]["phases"].values()) <= 1.1 * told["figures"]["ours"]["cpu_seconds"]["max"]


def test_the_ratio_is_of_cpu_seconds_for_each_reply_token(capsys: pytest.CaptureFixture[str]) -> None:
    def rows(*updates: tuple[float, int]) -> list[dict[str, object]]:
        return [{"seconds": seconds, "tokens": tokens, "phases": {"steps": 1.0}} for seconds, tokens in updates]

    # 0.01 against 0.03, 0.02 against 0.01, 0.01 against 0.05 seconds a token
    found = {"ours": rows((1, 100), (2, 100), (2, 200)), "TRL": rows((3, 100), (2, 200), (5, 100))}
    assert conclude("full", found) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert figures["times_as_fast"] == {"min": 0.5, "median": 3.0, "max": 5.0}
    assert figures["ours"]["cpu_seconds"] == {"min": 1, "median": 2, "max": 2}
