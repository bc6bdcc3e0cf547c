"""The OpenAPI document is true: schemathesis holds the gateway to it, with inputs that keep to it and that do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx

from tests.gateway.conftest import Gateway

# What a schema cannot say, so that a request which keeps to it may still be wrong (400): turns alternate, receipts are
# signed, text is not only white space. A body may also be too large, or of another media type.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404", "429"]
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "413", "415", "429"]
"""


def test_schemathesis_finds_nothing(served: Gateway, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command: list[str | Path] = [
        Path(sys.executable).with_name("schemathesis"),
        "--config-file",
        tmp_path / "schemathesis.toml",
    ]
    command += ["run", f"{served.url}/v1/openapi.json", "--checks=all", "--max-examples=10", "--seed=1"]
    command += ["--generation-deterministic", "--phases=examples,coverage,fuzzing"]
    command += ["--exclude-path=/v1/loop/events", "--continue-on-failure", "--request-timeout=20", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_every_operation_says_what_it_answers(http: httpx.Client) -> None:
    document = http.get("/v1/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) > 8
    for operation in operations:
        assert set(operation["responses"]) == {"200", "4XX", "5XX"}
        assert operation["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
    assert "422" not in json.dumps(document)
