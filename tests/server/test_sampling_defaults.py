"""What a request leaves unsaid, the server's settings say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from plaudit.v1.chat_pb2 import StreamChatRequest
from plaudit.v1.sampling_pb2 import SamplingParameters
from plaudit_server.config import ServerSettings
from plaudit_server.refusal import Refusal
from plaudit_server.validation import check_sampling


def settings(tmp_path: Path, **more: object) -> ServerSettings:
    needed = {"event_log": "sqlite:x", "policy_store": "x"}
    needed |= dict.fromkeys(("state_dir", "receipt_keys", "user_key_file"), str(tmp_path))
    return ServerSettings(**needed, **more)  # type: ignore[arg-type]


def test_defaults_fill_in_for_what_is_not_said(tmp_path: Path) -> None:
    served = settings(
        tmp_path, default_temperature=0.3, default_top_p=0.9, default_max_tokens=17, default_stop=["###", "User:"]
    )
    unsaid = check_sampling(StreamChatRequest(), served)
    assert (unsaid.temperature, unsaid.top_p, unsaid.max_tokens, unsaid.seed) == (0.3, 0.9, 17, None)
    assert unsaid.stop == ("###", "User:")
    asked = SamplingParameters(temperature=0, top_p=0.5, max_tokens=3, seed=0, stop=["."])
    said = check_sampling(StreamChatRequest(sampling=asked), served)
    assert (said.temperature, said.top_p, said.max_tokens, said.seed, said.stop) == (0.0, 0.5, 3, 0, (".",))


def refused(asked: SamplingParameters, served: ServerSettings) -> str | None:
    """The field for which a request is refused."""
    with pytest.raises(Refusal) as caught:
        check_sampling(StreamChatRequest(sampling=asked), served)
    return caught.value.field


@pytest.mark.parametrize("stop", [[""], ["x" * 65], ["x"] * 9, ["你" * 22], ["a\x00"]])
def test_a_default_stop_keeps_the_bounds_of_a_request(tmp_path: Path, stop: list[str]) -> None:
    with pytest.raises(ValidationError, match="default_stop"):
        settings(tmp_path, default_stop=stop)
    assert str(refused(SamplingParameters(stop=stop), settings(tmp_path))).startswith("sampling.stop")


@pytest.mark.parametrize("temperature", [0.005, -0.01, 2.01, math.nan])
def test_a_default_temperature_keeps_the_bounds_of_a_request(tmp_path: Path, temperature: float) -> None:
    """The server started, and each request without a temperature was refused for one that it had not given."""
    with pytest.raises(ValidationError, match="default_temperature"):
        settings(tmp_path, default_temperature=temperature)
    assert refused(SamplingParameters(temperature=temperature), settings(tmp_path)) == "sampling.temperature"


def test_the_ends_of_the_bounds_are_within(tmp_path: Path) -> None:
    for temperature in (0.0, 0.01, 2.0):
        served = settings(tmp_path, default_temperature=temperature, default_stop=["你" * 21 + "x"])
        unsaid = check_sampling(StreamChatRequest(), served)
        assert (unsaid.temperature, unsaid.stop) == (temperature, ("你" * 21 + "x",))
