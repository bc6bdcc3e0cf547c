"""What only SqliteLog promises: one machine's processes, its disk, and the outbox."""

from __future__ import annotations

import multiprocessing
import resource
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from plaudit.events import FEEDBACK, INTERACTIONS, PROGRESS, EventLogUnavailable, Record, from_beginning
from plaudit.events.sqlite import SqliteLog

APPEND_FOR_EVER = """
import sys
from pathlib import Path
from plaudit.events import FEEDBACK, Record
from plaudit.events.sqlite import SqliteLog

log = SqliteLog(Path(sys.argv[1]))
for n in range(10**9):
    log.append([Record(FEEDBACK, "key", b"%d" % n)])
    print(n, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made on demand" / "events.db"


@pytest.fixture
def log(path: Path) -> Iterator[SqliteLog]:
    with SqliteLog(path) as log:
        yield log


def append_some(path: Path, process: int, count: int) -> str:
    with SqliteLog(path, busy_timeout=30) as log:
        for n in range(count):
            log.append([Record(FEEDBACK, f"process-{process}", b"%d" % n)])
        return log.identity


def test_processes_open_and_append_together(path: Path) -> None:
    processes, each = 4, 20
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(append_some, path, process, each) for process in range(processes)]
        identities = {future.result(timeout=60) for future in futures}

    assert len(identities) == 1
    with SqliteLog(path) as log:
        entries = log.read(from_beginning(log, FEEDBACK))
    assert [entry.offset for entry in entries] == list(range(processes * each))
    seen = defaultdict(list)
    for entry in entries:
        seen[entry.key].append(int(entry.value))
    assert seen == {f"process-{process}": list(range(each)) for process in range(processes)}


def test_what_was_acknowledged_survives_kill_9(path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", APPEND_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer, writer.stdout as acknowledged:
        last = [int(next(acknowledged)) for _ in range(60)][-1]
        writer.kill()
        last = max([last, *(int(line) for line in acknowledged if line.endswith("\n"))])

    with SqliteLog(path) as log:
        entries = log.read(from_beginning(log, FEEDBACK), limit=10**6)
        values = [int(entry.value) for entry in entries]
        assert values == list(range(len(values)))
        assert len(values) in (last + 1, last + 2)  # perhaps one more, which it had no time to report
        log.append([Record(FEEDBACK, "key", b"and on")])
        assert log.lag({(FEEDBACK, 0): 0}) == len(values) + 1


def test_every_commit_is_fsynced(log: SqliteLog) -> None:
    assert log._writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert log._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_offsets_go_on_after_the_drained_are_deleted(path: Path, log: SqliteLog) -> None:
    log.append([Record(FEEDBACK, "key", b"%d" % n) for n in range(5)])
    log.append([Record(INTERACTIONS, "key", b"stays")])

    log.delete_before(FEEDBACK, 3)
    assert [entry.offset for entry in log.read({(FEEDBACK, 0): 0})] == [3, 4]
    assert log.lag({(FEEDBACK, 0): 0, (INTERACTIONS, 0): 0}) == 3
    log.delete_before(FEEDBACK, 5)
    assert log.read({(FEEDBACK, 0): 0}) == []
    assert log.lag({(FEEDBACK, 0): 0}) == 0

    log.append([Record(FEEDBACK, "key", b"5")])
    with SqliteLog(path) as again:
        again.append([Record(FEEDBACK, "key", b"6")])
        assert [entry.offset for entry in again.read({(FEEDBACK, 0): 0})] == [5, 6]
        assert [entry.value for entry in again.read({(INTERACTIONS, 0): 0})] == [b"stays"]


def test_progress_does_not_make_the_file_grow(path: Path, log: SqliteLog) -> None:
    def size() -> int:
        log._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size

    for round_ in range(20):
        log.append([Record(PROGRESS, "learner", b"x" * 10_000), Record(PROGRESS, f"round-{round_}", b"y")])
    before = size()
    for _ in range(100):
        log.append([Record(PROGRESS, "learner", b"x" * 10_000)])
    assert size() <= before + 20_000
    entries = log.read({(PROGRESS, 0): 0})
    assert [entry.key for entry in entries] == [*(f"round-{round_}" for round_ in range(20)), "learner"]
    assert log.read({(PROGRESS, 0): entries[-1].offset}) == entries[-1:], "offsets go on, whatever was deleted"


def test_no_topic_waits_for_the_backlog_of_another(log: SqliteLog) -> None:
    for n in range(100):
        log.append([Record(INTERACTIONS, f"{n}", b"interaction"), Record(FEEDBACK, f"{n}", b"feedback")])

    entries = log.read(from_beginning(log, INTERACTIONS, FEEDBACK), limit=10)

    assert [entry.topic for entry in entries] == [FEEDBACK] * 5 + [INTERACTIONS] * 5


def test_a_locked_file_is_unavailable_and_nothing_is_half_appended(path: Path) -> None:
    with SqliteLog(path, busy_timeout=0.1) as log:
        other = sqlite3.connect(path, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(EventLogUnavailable, match=r"events\.db: database is locked"):
                log.append([Record(FEEDBACK, "key", b"1")])
            assert log.read({(FEEDBACK, 0): 0}) == []  # reading goes on meanwhile
        finally:
            other.close()
        log.append([Record(FEEDBACK, "key", b"2")])
        assert [entry.value for entry in log.read({(FEEDBACK, 0): 0})] == [b"2"]


def test_a_full_disk_is_unavailable_and_works_again_when_there_is_room(log: SqliteLog) -> None:
    log.append([Record(FEEDBACK, "key", b"before")])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(EventLogUnavailable, match=r"events\.db: "):
            log.append([Record(FEEDBACK, "key", b"small"), Record(FEEDBACK, "key", b"x" * 1_000_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    log.append([Record(FEEDBACK, "key", b"after")])
    entries = log.read({(FEEDBACK, 0): 0})
    assert [(entry.offset, entry.value) for entry in entries] == [(0, b"before"), (1, b"after")]


def test_what_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"this is no database" * 100)
    newer = tmp_path / "newer.db"
    with SqliteLog(newer) as log:
        log._writer.execute("PRAGMA user_version = 99")
    for path, why in [
        (garbage, "not a database"),
        (tmp_path, "unable to open"),
        (garbage / "below a file.db", "File exists"),
        (newer, "schema 99"),
    ]:
        with pytest.raises(EventLogUnavailable, match=why):
            SqliteLog(path)


def test_a_replaced_file_is_noticed(path: Path, log: SqliteLog) -> None:
    path.unlink()
    with pytest.raises(EventLogUnavailable):
        log.append([Record(FEEDBACK, "key", b"into the void")])
    with SqliteLog(path) as other:
        with pytest.raises(EventLogUnavailable, match="another file is there now"):
            log.append([Record(FEEDBACK, "key", b"into the void")])
        assert other.identity != log.identity


def test_how_much_is_left_is_told_without_reading_it(log: SqliteLog) -> None:
    log.append([Record(FEEDBACK, "key", b"x")] * 20_000)
    looked: list[None] = []
    log._reader.set_progress_handler(lambda: looked.append(None), 1000)  # at every so many steps of SQLite's machine
    assert log.lag({(FEEDBACK, 0): 5}) == 19_995
    assert len(looked) < 10
