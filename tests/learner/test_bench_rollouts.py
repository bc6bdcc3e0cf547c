"""`make bench-rollouts SIZE=small`: each way samples what it should, and the figures are what they say.

vLLM's engine is not in the small size: a start of it costs more than all the rest.
"""

from __future__ import annotations

import json

import pytest

from bench.rollouts import conclude, main


def test_small_size_samples_in_each_way(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "small", "--repetitions", "2"]) == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert told["bench"] == "rollouts"
    figures = told["figures"]
    assert figures["missing"] == {}
    for name in ("ours", "generate", "generate_batch"):
        found = figures[name]
        assert found["replies"]["min"] == found["replies"]["max"] == 4 * 2
        assert 4 * 2 < found["tokens"]["min"] <= found["tokens"]["max"] <= 4 * 2 * 12
        assert found["tokens_per_cpu_second"]["min"] > 0
        assert found["logprob_error"] < 1e-3, f"{name}: not of the distribution that was sampled from"
    assert 0 < figures["generate"]["logprobs_share"]["max"] < 1


def test_ratios_are_of_the_same_repetition(capsys: pytest.CaptureFixture[str]) -> None:
    def rows(*rates: float) -> list[dict[str, float]]:
        keys = ("tokens_per_second", "new_weights_cpu_seconds", "logprobs_share", "logprob_error")
        return [{"tokens_per_cpu_second": rate, **dict.fromkeys(keys, 0.1)} for rate in rates]

    found = {"ours": rows(10, 20, 40), "generate": rows(5, 30, 10)}
    assert conclude("full", found, {"engine": "it is not there"}) == 0
    lines = capsys.readouterr().out.splitlines()
    told = json.loads(lines[-1])
    assert told["figures"]["of_ours"]["generate"] == {"min": 0.25, "median": 0.5, "max": 1.5}
    assert told["figures"]["missing"] == {"engine": "it is not there"}
    assert any("it is not there" in line for line in lines[:-1])
    assert conclude("full", {**found, "engine": rows(11, 22, 44)}, {}) == 1, "another is faster"
