"""The OpenAPI document is true: schemathesis holds the gateway to it, with inputs that keep to it and that do not."""

from __future__ import annotations

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, seed, settings
from schemathesis.config import SchemathesisConfig

from tests.gateway.conftest import Gateway

# What a schema cannot say, so that a request which keeps to it may still be wrong: turns alternate, receipts are signed,
# text is not only white space. 501 is nobody's.
_CONFIG = SchemathesisConfig.from_dict(
    {
        "checks": {
            "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "401", "403", "404", "429"]},
            "negative_data_rejection": {"expected-statuses": ["400", "401", "403", "404", "405", "413", "415"]},
        },
        "generation": {"deterministic": True, "database": "none"},
    }
)


@pytest.fixture(scope="module")
def document(served: Gateway) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{served.url}/v1/openapi.json", config=_CONFIG)


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@seed(1)
@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
def test_nothing_is_found(case: schemathesis.Case) -> None:
    case.call_and_validate(timeout=20)
