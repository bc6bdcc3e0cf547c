"""Writes the part of values.schema.json that is the programs' own: which settings there are, and of which type.

`python -m tests.helm.settings_schema` after a setting has come, gone or changed; a test says when. What the chart gives
itself is left out, so that nobody gives it twice.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parents[2] / "helm" / "plaudit" / "values.schema.json"

PROGRAMS = {
    "server": ("plaudit_server.config", "ServerSettings"),
    "learner": ("plaudit_learner.config", "LearnerSettings"),
    "gateway": ("plaudit_gateway.config", "GatewaySettings"),
}

_OF_THE_CHART = frozenset(
    {
        "model",
        "model_cache",
        "event_log",
        "policy_store",
        "state_dir",
        "metrics_port",
        "metrics_host",
        "exit_with_parent",
        "listen",
        "control_listen",
        "callers_file",
        "tls_certificate",
        "tls_key",
        "tls_client_ca",
        "allow_insecure",
        "user_key_file",
        "receipt_keys",
        "drain_seconds",
        "server",
        "retries",
        "control",
        "server_tls",
        "server_ca",
        "client_certificate",
        "client_key",
        "observe_key_file",
        "log_format",
        "log_level",
        "traces",
    }
)


def settings_of(program: str) -> Any:
    """The settings class of a program."""
    module, name = PROGRAMS[program]
    return getattr(importlib.import_module(module), name)


def described(program: str) -> dict[str, Any]:
    """A JSON schema of an object with the settings of a program, by their flags' names."""
    schema = settings_of(program).model_json_schema()
    properties = {
        name.replace("_", "-"): _plain(field)
        for name, field in schema["properties"].items()
        if name not in _OF_THE_CHART
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    """The field's type and bounds. What it means, the programs' --help says, so that only one place has to be true."""
    left_out = ("title", "description", "default", "format", "anyOf")
    kept = {name: value for name, value in field.items() if name not in left_out}
    for choice in field.get("anyOf", []):
        if choice.get("type") != "null":
            kept |= _plain(choice)
    return kept


def main() -> None:
    """Bring the file up to date."""
    schema = json.loads(SCHEMA.read_text())
    for program in PROGRAMS:
        schema["definitions"][f"{program}Settings"] = described(program)
    SCHEMA.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
