"""How much of everything a deployment needs: bytes and intake measured here, the rest arithmetic from declared inputs.

    measured ──▶ Measured ─┐
                           ├─▶ plan(chats an hour) ──▶ a row of docs/operations.md's table
    declared ──▶ Load ─────┘

Measured, on this machine: the bytes of a record in the event log (by kafka-python's own encoder), the bytes of a reply
in the experience store, and how many records a second the store takes in. Taken from docs/performance.md and
docs/learning.md: tokens a second of a server, CPU of its front, CPU of a PPO update. `--table` prints the rows for the
declared load.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.report import report
from plaudit.v1.events_pb2 import Feedback, Interaction
from plaudit.v1.feedback_pb2 import Thumb
from plaudit.v1.sampling_pb2 import FinishReason, SamplingParameters

_HOUR = 3600.0
# Token ids of one, two and three bytes as Protobuf writes them, and how frequent they are in English: of the 30,000
# tokens that SmolLM2 makes of self-instruct's seed tasks.
_IDS = (range(128), range(128, 16_384), range(16_384, 49_152))
_FREQUENT = (0.23, 0.66, 0.11)


@dataclass(frozen=True)
class Load:
    """What is asked of a deployment. Declared: put your own."""

    prompt_tokens: int = 300
    """Of a chat, with the template and what was said before."""
    reply_tokens: int = 150
    vote_rate: float = 0.05
    """Votes a reply."""
    utilisation: float = 0.6
    """Of a server's tokens a second, on the average of the busiest hour."""
    retention_days: float = 7.0
    """Of the topics of interactions and feedback."""
    copies: int = 3
    """Of each record in Kafka."""
    vote_delay_hours: float = 1.0
    """How long after a reply its votes may come and still be learnt from."""
    partition_rate: float = 1e6
    """Bytes a second that a partition is trusted with; brokers take more. Not measured on Apache Kafka."""
    gpu_tokens: float = 5000.0
    """Reply tokens a second of a server on a GPU. NOT measured here: no machine had one."""


@dataclass(frozen=True)
class Measured:
    """Figures of this repository, 2 CPU cores. The defaults are what the table in docs/operations.md was made with."""

    interaction_bytes: float = 1_670.0
    """Of Load's interaction, in Kafka's log, uncompressed."""
    vote_bytes: float = 236.0
    stored_bytes: float = 4_190.0
    """Of the interaction in the experience store."""
    intake: float = 8_600.0
    """Records a second that the store takes in, one process."""
    cpu_tokens: float = 102.7
    """Reply tokens a second of a server, SmolLM2-135M, 64 callers (docs/performance.md)."""
    front_seconds: float = 0.351
    """CPU of a server's front, seconds a 1,000 tokens, 64 callers (docs/performance.md); at most a core."""
    update_seconds: float = 46.1
    """CPU of a PPO update (docs/learning.md)."""
    updates: int = 12
    """In a round with the whole KL budget."""


@dataclass(frozen=True)
class Plan:
    """What one rate of chats needs."""

    chats: int
    """An hour."""
    tokens: float
    """Of replies, a second."""
    cpu_servers: int
    gpu_servers: int
    front_cores: float
    kafka_bytes: float
    """In Kafka's log over the retention, all copies."""
    kafka_rate: float
    """Bytes a second that are written, one copy."""
    partitions: int
    intake: float
    """Share of what the learner can take in."""
    window: int
    """--window."""
    store_bytes: float
    votes_per_round: int
    """Votes that come in while a round's PPO runs on one core: with fewer a round, rounds follow at once."""


def plan(chats: int, load: Load, measured: Measured) -> Plan:
    """Work it out."""
    replies = chats / _HOUR
    tokens = replies * load.reply_tokens
    votes = replies * load.vote_rate
    rate = replies * measured.interaction_bytes + votes * measured.vote_bytes
    window = math.ceil(chats * load.vote_delay_hours / 1000) * 1000
    return Plan(
        chats=chats,
        tokens=tokens,
        cpu_servers=math.ceil(tokens / (measured.cpu_tokens * load.utilisation)),
        gpu_servers=math.ceil(tokens / (min(load.gpu_tokens, 1000 / measured.front_seconds) * load.utilisation)),
        front_cores=tokens / 1000 * measured.front_seconds,
        kafka_bytes=rate * load.retention_days * 24 * _HOUR * load.copies,
        kafka_rate=rate,
        partitions=max(3, math.ceil(rate / load.partition_rate)),
        intake=(replies + votes) / measured.intake,
        window=max(4000, window),
        store_bytes=max(4000, window) * measured.stored_bytes,
        votes_per_round=max(40, math.ceil(votes * measured.update_seconds * measured.updates / 10) * 10),
    )


CHATS = (1_000, 10_000, 100_000, 1_000_000)


def table(load: Load, measured: Measured) -> list[str]:
    """The rows of docs/operations.md."""
    lines = [
        "| chats an hour | reply tokens/s | servers of 2 CPU cores | servers on a GPU (assumed) "
        "| cores of the servers' fronts "
        "| written to Kafka | in Kafka, 7 days, 3 copies | partitions | learner's intake | `window` | experience store "
        "| `votes-per-round` at least |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for chats in CHATS:
        row = plan(chats, load, measured)
        lines.append(
            f"| {chats:,} | {row.tokens:,.0f} | {row.cpu_servers:,} | {row.gpu_servers:,} | {row.front_cores:.2g} "
            f"| {_bytes(row.kafka_rate)}/s | {_bytes(row.kafka_bytes)} | {row.partitions} "
            f"| {100 * row.intake:.1g} % | {row.window:,} "
            f"| {_bytes(row.store_bytes)} | {row.votes_per_round:,} |"
        )
    return lines


def _bytes(amount: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"


def interaction(load: Load, number: int, draw: random.Random) -> Interaction:
    """As a server writes it, with token ids that take as many bytes as those of text."""

    def ids(count: int) -> list[int]:
        return [draw.choice(some) for some in draw.choices(_IDS, _FREQUENT, k=count)]

    made = Interaction(
        schema_version=1,
        response_id=f"{number:032x}",
        policy_version="v12",
        conversation_id=f"{draw.getrandbits(128):032x}",
        user=f"{draw.getrandbits(128):032x}",
        prompt_token_ids=ids(load.prompt_tokens),
        reply_token_ids=ids(load.reply_tokens),
        behaviour_logprobs=[-draw.random() for _ in range(load.reply_tokens)],
        sampling=SamplingParameters(temperature=0.7, top_p=1.0, max_tokens=256, seed=draw.getrandbits(31)),
        finish_reason=FinishReason.FINISH_REASON_STOP,
    )
    made.started_at.FromNanoseconds(1_790_000_000_000_000_000 + number * 1_000_000)
    made.finished_at.FromNanoseconds(1_790_000_003_000_000_000 + number * 1_000_000)
    return made


def vote(number: int, draw: random.Random) -> Feedback:
    """A thumb on the interaction of that number."""
    made = Feedback(
        schema_version=1,
        feedback_id=f"{draw.getrandbits(128):032x}",
        response_id=f"{number:032x}",
        policy_version="v12",
        aspect="quality",
        user=f"{draw.getrandbits(128):032x}",
        thumb=draw.choice((Thumb.THUMB_UP, Thumb.THUMB_DOWN)),
    )
    made.submitted_at.FromNanoseconds(1_790_000_010_000_000_000 + number * 1_000_000)
    return made


def in_log(records: list[tuple[str, bytes]], batch: int = 4) -> float:
    """Bytes a record in Kafka's log, `batch` of them together, uncompressed: by the producer's own encoder."""
    import_module("plaudit.events.kafka")  # which keeps quiet what kafka-python's import is warned of
    from kafka.record import MemoryRecordsBuilder

    total = 0
    for start in range(0, len(records), batch):
        builder = MemoryRecordsBuilder(magic=2, compression_type=0, batch_size=1 << 24)
        for key, value in records[start : start + batch]:
            builder.append(timestamp=1_790_000_000_000, key=key.encode(), value=value)
        builder.close()
        total += builder.size_in_bytes()
    return total / len(records)


def records(load: Load, replies: int) -> tuple[list[Interaction], list[Feedback]]:
    """That many interactions, and their votes."""
    draw = random.Random(0)
    interactions = [interaction(load, number, draw) for number in range(replies)]
    return interactions, [vote(number, draw) for number in range(replies) if draw.random() < load.vote_rate]


def measure_log(load: Load, replies: int) -> tuple[float, float]:
    """Bytes in Kafka's log: of an interaction, of a vote."""
    interactions, votes = records(load, replies)
    return (
        in_log([(record.response_id, record.SerializeToString()) for record in interactions]),
        in_log([(record.response_id, record.SerializeToString()) for record in votes], batch=1),
    )


def measure_store(load: Load, replies: int) -> tuple[float, float]:
    """Bytes of an interaction in the experience store, its votes included; records that it takes in a second."""
    from plaudit_learner.experience.store import Experience

    interactions, votes = records(load, replies)
    everything: list[Interaction | Feedback] = [*interactions, *votes]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "experience.sqlite"
        store = Experience(path)
        start = time.perf_counter()
        for first in range(0, len(everything), 1000):  # as the intake takes them in
            with store.transaction():
                for record in everything[first : first + 1000]:
                    store.add(record)
        seconds = time.perf_counter() - start
        store.close()
        return path.stat().st_size / replies, len(everything) / seconds


def main() -> int:
    """Measure, and compare with what the table was made with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--table", action="store_true", help="only print the table of docs/operations.md")
    arguments = parser.parse_args()
    load, declared = Load(), Measured()
    if arguments.table:
        print("\n".join(table(load, declared)))
        return 0
    replies = 20_000 if arguments.size == "full" else 1_000
    in_kafka, stored = measure_log(load, replies), measure_store(load, replies)
    measured = Measured(interaction_bytes=in_kafka[0], vote_bytes=in_kafka[1], stored_bytes=stored[0], intake=stored[1])
    names = ("interaction_bytes", "vote_bytes", "stored_bytes", "intake")
    figures = {name: round(getattr(measured, name), 1) for name in names}
    print("\n".join(table(load, measured)))
    goals = {
        "the table's bytes are those measured, within a tenth": all(
            abs(getattr(measured, name) / getattr(declared, name) - 1) < 0.1
            for name in ("interaction_bytes", "vote_bytes", "stored_bytes")
        )
    }
    return report("capacity", arguments.size, figures=figures, goals=goals)


if __name__ == "__main__":
    sys.exit(main())
