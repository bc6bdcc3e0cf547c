"""What is logged, in both forms, and that a reader of it who is slow holds up nobody."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from plaudit import logs

TRACE = "4b" * 16


def record(level: int, words: str, *arguments: object, name: str = "plaudit_server.x", **named: object) -> Any:
    return logging.getLogger(name).makeRecord(name, level, "", 0, words, arguments, None, extra=logs.fields(**named))


def test_a_line_for_people_and_one_for_machines() -> None:
    said = record(logging.INFO, "serving %s", "v3", policy_version="v3", trace_id=TRACE, share=None, reason="")
    said.trace_id = TRACE
    human = logs.HumanFormatter("plaudit-server").format(said)
    assert human.endswith(f"Z INFO plaudit-server: serving v3 (trace {TRACE})")
    machine = logs.JsonFormatter("plaudit-server").format(said)
    found = json.loads(machine)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "info",
        "program": "plaudit-server",
        "logger": "plaudit_server.x",
        "message": "serving v3",
        "policy_version": "v3",
        "trace_id": TRACE,
    }
    for line, words in ((human, f"serving v3 (trace {TRACE})"), (machine, "serving v3")):
        assert logs.parse(line) == logs.Line("INFO", words)


FORMATTERS = [logs.HumanFormatter, logs.JsonFormatter]


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_whoever_looks_on_sees_our_programs_and_no_calls(formatter: Callable[[str], logging.Formatter]) -> None:
    of_a_rank = formatter("plaudit-learner[1]").format(record(logging.WARNING, "hm"))
    assert logs.parse(of_a_rank) == logs.Line("WARNING", "hm")
    for program, said in (
        ("plaudit-server", record(logging.INFO, "StreamChat OK", name=logs.ACCESS)),
        ("plaudit-server", record(logging.DEBUG, "in detail")),
        ("another", record(logging.INFO, "hello")),
    ):
        assert logs.parse(formatter(program).format(said)) is None


@pytest.mark.parametrize("line", ["", "{", "{}", '{"program": 5, "level": "info"}', "[]", "INFO 11-26 vllm: hello"])
def test_lines_of_others_are_none_of_ours(line: str) -> None:
    assert logs.parse(line) is None


class Stalled(io.StringIO):
    """Where nobody reads, until somebody does."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = threading.Event()

    def write(self, text: str) -> int:
        self.reading.wait(30)
        return super().write(text)


@pytest.fixture
def stalled() -> Iterator[Stalled]:
    """Standard error of a program whose log is not read."""
    stream, root = Stalled(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.HumanFormatter("plaudit-server"))
    before, root.handlers = root.handlers, [handler]
    yield stream
    stream.reading.set()
    root.handlers = before


def test_calls_are_not_held_up_by_who_reads_about_them(stalled: Stalled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_MOST_WAITING", 5)
    access = logging.getLogger(logs.ACCESS)
    access.setLevel(logging.INFO)
    with logs.calls_apart():
        for number in range(20):
            access.info("call %d", number)  # would stand still here
        assert not stalled.getvalue()
        stalled.reading.set()
        while "call 4" not in stalled.getvalue():  # it is read again
            threading.Event().wait(0.01)
        access.info("call 20")
    lines = stalled.getvalue().splitlines()
    assert "call 0" in lines[0]
    assert "plaudit-server/call: call 20" in lines[-1], "all that waits is written at the end"
    (warning,) = [line for line in lines if "WARNING" in line]
    dropped = int(warning.split("plaudit-server: ")[1].split()[0])
    assert dropped == 21 - (len(lines) - 1), "each line is there, or counted"


def test_a_program_logs_as_it_is_told() -> None:
    """And a level below `debug` of others stays as it is."""
    code = (
        "import logging; from plaudit.lifecycle import log_to_stderr; log_to_stderr('plaudit-x', 'json', 'debug');"
        "logging.getLogger('plaudit_server.y').debug('ours'); logging.getLogger('other').debug('theirs');"
        "logging.getLogger('other').warning('warned')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["ours", "warned"]
