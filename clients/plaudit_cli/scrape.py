"""Reads Prometheus endpoints: the text format as far as counters, gauges and histograms need it, rates and quantiles.

By hand, because the client is to install with few packages, and `prometheus-client` would be one for a single command:
what is read here was written by our own programs, and a test compares the parser with that package's.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
import urllib.request
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException

Labels = tuple[tuple[str, str], ...]
Samples = Mapping[str, Mapping[Labels, float]]
"""Name of a series → its labels, sorted by name → value."""

RATE_SECONDS = 10.0
"""What rates are over."""
LATENCY_SECONDS = 60.0
"""What quantiles are over, if there was anything in that time."""
_TIMEOUT_SECONDS = 2.0
_MOST_BYTES = 8 << 20
_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def parse(text: str, prefix: str = "plaudit_") -> Samples:
    """The series whose names begin with `prefix`; lines that are none are passed over."""
    samples: dict[str, dict[Labels, float]] = {}
    for line in text.split("\n"):  # no other character ends one
        match = _SAMPLE.match(line) if line.startswith(prefix) else None
        if match is None:
            continue
        name, labels, value = match.groups()
        pairs = ((key, re.sub(r"\\.", _unescape, said)) for key, said in _LABEL.findall(labels or ""))
        try:
            samples.setdefault(name, {})[tuple(sorted(pairs))] = float(value)
        except ValueError:
            continue
    return samples


def quantile(cumulative: Mapping[float, float], q: float) -> float | None:
    """That of a histogram (upper bound → observations up to it), as Prometheus' histogram_quantile; None: empty."""
    bounds = sorted(cumulative)
    total = cumulative[bounds[-1]] if bounds else 0.0
    if not total > 0:
        return None
    below, count = 0.0, 0.0
    for bound in bounds:
        if cumulative[bound] >= q * total:
            if math.isinf(bound):
                return below  # all that is known: it is more than that
            return below + (bound - below) * (q * total - count) / ((cumulative[bound] - count) or 1.0)
        below, count = bound, cumulative[bound]
    return below


class Endpoint:
    """One program's metrics, as far back as they are needed."""

    def __init__(self, url: str, *, optional: bool = False) -> None:
        """optional: it is one of ours only once it has answered as one."""
        self.url = url
        self.optional = optional
        self.error = "not asked yet"
        """Why there is nothing new; empty: there is."""
        self._seen: deque[tuple[float, Samples]] = deque()

    @property
    def known(self) -> bool:
        """Whether people are to be told of it."""
        return bool(self._seen) or not self.optional

    @property
    def now(self) -> Samples:
        """What it said last; nothing if it does not answer."""
        return self._seen[-1][1] if self._seen and not self.error else {}

    async def scrape(self) -> None:
        """Ask it; never raises for what it answers, or does not."""
        try:
            samples = parse(await asyncio.to_thread(_fetch, self.url))
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            self.error = " ".join(str(getattr(reason, "strerror", None) or reason or type(error).__name__).split())
            return
        if not samples:
            self.error = "answers, but has no metrics of Plaudit's"
            return
        self.error = ""
        now = time.monotonic()
        self._seen.append((now, samples))
        while now - self._seen[1 if len(self._seen) > 1 else 0][0] > LATENCY_SECONDS:
            self._seen.popleft()

    def increase(self, name: str, seconds: float) -> tuple[dict[Labels, float], float]:
        """(how much each series of `name` grew in the last `seconds`, over how many seconds that really is).

        A program that was started again counts from 0; so does one that was asked once only, over 0 seconds.
        """
        if self.error or not self._seen:
            return {}, 0.0
        at, now = self._seen[-1]
        then_at, then = next(((t, s) for t, s in self._seen if t >= at - seconds), self._seen[-1])
        before = then.get(name, {}) if then_at < at else {}
        grown = {}
        for labels, value in now.get(name, {}).items():
            old = before.get(labels, 0.0)
            grown[labels] = value - old if value >= old else value
        return grown, at - then_at


@dataclass(frozen=True, slots=True)
class Serving:
    """What the servers do, all together. Times in seconds; None: cannot be told (yet)."""

    servers: int
    """So many answered."""
    replies_per_second: float | None
    tokens_per_second: float | None
    time_to_first_token_p50: float | None
    time_to_first_token_p99: float | None
    inter_token_p50: float | None
    latency_over: float | None
    """What the three are over; None: since the servers started, as there were no replies lately."""
    running: int
    waiting: int
    outbox: int
    """Records that are not in the event log yet."""
    engines_down: int


def serving(endpoints: Iterable[Endpoint]) -> Serving | None:
    """None if no server answers."""
    servers = [endpoint for endpoint in endpoints if "plaudit_requests_running" in endpoint.now]
    if not servers:
        return None
    over: float | None = LATENCY_SECONDS
    first = _histogram(servers, "plaudit_time_to_first_token_seconds", LATENCY_SECONDS)
    between = _histogram(servers, "plaudit_inter_token_latency_seconds", LATENCY_SECONDS)
    if quantile(first, 0.5) is None:
        over = None
        first = _histogram(servers, "plaudit_time_to_first_token_seconds", 0.0)
        between = _histogram(servers, "plaudit_inter_token_latency_seconds", 0.0)
    return Serving(
        servers=len(servers),
        replies_per_second=_rate(servers, "plaudit_requests_total"),
        tokens_per_second=_rate(servers, "plaudit_generation_tokens_total"),
        time_to_first_token_p50=quantile(first, 0.5),
        time_to_first_token_p99=quantile(first, 0.99),
        inter_token_p50=quantile(between, 0.5),
        latency_over=over,
        running=_sum(servers, "plaudit_requests_running"),
        waiting=_sum(servers, "plaudit_requests_waiting"),
        outbox=_sum(servers, "plaudit_outbox_depth"),
        engines_down=sum(endpoint.now.get("plaudit_engine_up", {}).get((), 1.0) == 0 for endpoint in servers),
    )


def _rate(servers: Sequence[Endpoint], name: str) -> float | None:
    grown = [server.increase(name, RATE_SECONDS) for server in servers]
    rates = [sum(each.values()) / seconds for each, seconds in grown if seconds > 0]
    return sum(rates) if rates else None


def _histogram(servers: Sequence[Endpoint], name: str, seconds: float) -> dict[float, float]:
    """Observations of the last `seconds` up to each bound; 0: of all since the start."""
    cumulative: dict[float, float] = {}
    for server in servers:
        grown, over = server.increase(f"{name}_bucket", seconds)
        if seconds and not over:
            continue
        for labels, value in grown.items():
            bound = float(dict(labels).get("le", "inf"))
            cumulative[bound] = cumulative.get(bound, 0.0) + value
    return cumulative


def _sum(servers: Sequence[Endpoint], name: str) -> int:
    return int(sum(sum(server.now.get(name, {}).values()) for server in servers))


def _unescape(match: re.Match[str]) -> str:
    return _ESCAPED.get(match[0], match[0])


def _fetch(url: str) -> str:
    """Raises OSError, HTTPException; ValueError for no URL, or more than 8 MiB."""
    if not url.startswith(("http://", "https://")):
        raise ValueError("no http:// or https:// URL")
    # Without the environment's proxy: these are addresses of one's own network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=_TIMEOUT_SECONDS) as answer:
        content: bytes = answer.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"answers with more than {_MOST_BYTES >> 20} MiB")
    return content.decode(errors="replace")
