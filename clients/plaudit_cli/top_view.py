"""How `plaudit top` looks: one snapshot of the loop as lines of text, for any width; nothing is asked or kept here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from plaudit_cli.common import printable
from plaudit_cli.scrape import Serving
from plaudit_client import Approval, LearnerReport, Loop, Policies, ReleaseStep, RoundReport

SILENT_SECONDS = 90.0
"""A learner that has said nothing for so long is away: it says something every half minute."""
_MOST_BAR = 40
_MOST_STEPS = 12


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known now; made by top.py."""

    time: datetime
    control: str
    """The server that was asked."""
    loop: Loop | None
    loop_error: str
    """Why it could not be asked (again): `loop` is then what was seen last. Empty: it could."""
    policies: Policies | None
    policies_error: str
    serving: Serving | None
    """None: no server's metrics answer."""
    endpoints: dict[str, str]
    """Metrics endpoint → why it does not answer; empty: it does."""

    def to_json(self) -> dict[str, Any]:
        """Plain values: times as ISO 8601, what cannot be told as null."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What bars are drawn with."""

    full: str
    empty: str
    span: str
    point: str
    cut: str


UNICODE = Glyphs("█", "░", "━", "●", "…")
ASCII = Glyphs("#", ".", "=", "o", "~")


def render(snapshot: Snapshot, *, width: int | None, height: int | None = None, glyphs: Glyphs = UNICODE) -> Group:
    """The snapshot in so many columns and rows; None: lines and lists are as long as they are."""
    head = [_header(snapshot), *_serving(snapshot), *_learner(snapshot, width, glyphs)]
    approvals, steps = _approvals(snapshot, width, glyphs), _steps(snapshot)
    left = 10**6 if height is None else height - len(head) - 2  # two titles
    shown_steps = steps[-min(len(steps), _MOST_STEPS, max(left // 2, left - len(approvals), 1)) :] if steps else []
    shown = approvals[-max(left - len(shown_steps), 1) :] if approvals else []
    lines = [*head, _title(_approval_title(len(shown), len(approvals))), *shown, _title("releases"), *shown_steps]
    if height is not None:
        lines = lines[:height]
    return Group(*(_fitted(line, width, glyphs) for line in lines))


def _header(snapshot: Snapshot) -> Text:
    line = Text("plaudit top", style="bold")
    line.append(f"  {snapshot.time.astimezone():%H:%M:%S}  {snapshot.control}", style="not bold")
    if snapshot.policies is not None:
        line.append(f"  serves {snapshot.policies.serving_version}", style="bold green")
    if snapshot.loop_error:
        line.append(f"  AWAY: {printable(snapshot.loop_error)}", style="bold red")
    elif snapshot.policies_error:
        line.append(f"  policies: {printable(snapshot.policies_error)}", style="yellow")
    return line


def _serving(snapshot: Snapshot) -> Iterator[Text]:
    yield _title("serving")
    now = snapshot.serving
    if now is None:
        yield Text("  no server's metrics answer", style="yellow")
    else:
        yield Text(
            f"  replies {_number(now.replies_per_second)}/s   tokens {_number(now.tokens_per_second)}/s"
            f"   running {now.running}   waiting {now.waiting}   outbox {now.outbox}"
            f"   {_count(now.servers, 'server')}"
        )
        over = f"last {now.latency_over:.0f} s" if now.latency_over else "since the start"
        yield Text(
            f"  first token p50 {_seconds(now.time_to_first_token_p50)}, p99 {_seconds(now.time_to_first_token_p99)}"
            f"   between tokens p50 {_seconds(now.inter_token_p50)}   {over}"
        )
        if now.engines_down:
            yield Text(f"  {_count(now.engines_down, 'engine')} down", style="bold red")
    for url, error in snapshot.endpoints.items():
        if error:
            yield Text(f"  {url}: {printable(error)}", style="yellow")


def _learner(snapshot: Snapshot, width: int | None, glyphs: Glyphs) -> Iterator[Text]:
    yield _title("learner")
    loop = snapshot.loop
    if loop is None or loop.learner is None:
        why = "how it does is not known: the server is away" if snapshot.loop_error else "it has said nothing yet"
        yield Text(f"  {why}", style="yellow")
        return
    learner = loop.learner
    since = _ago(snapshot.time, learner.stage_since)
    line = Text(f"  {printable(learner.stage)}", style="bold")
    line.append(f" for {since}   new votes {learner.new_votes}/{learner.votes_per_round}", style="not bold")
    line.append(f"   records behind {learner.lag}", style="not bold")
    if (silent := _silence(snapshot.time, learner)) is not None:
        line.append(f"   SILENT for {silent}", style="bold red")
    yield line
    if loop.rounds:
        yield from _round(snapshot, loop.rounds[-1], width, glyphs)


def _round(snapshot: Snapshot, last: RoundReport, width: int | None, glyphs: Glyphs) -> Iterator[Text]:
    done, planned = len(last.updates), last.updates_planned
    if last.ended_at is None:
        line = Text(f"  round {last.number}, {last.votes} votes: ")
        if planned:
            cells = 10 if width is not None and width < 100 else 20
            full = round(cells * min(1.0, done / planned))
            line.append(glyphs.full * full, style="green")
            line.append(glyphs.empty * (cells - full), style="dim")
            line.append(f" update {done} of {planned}")
            for update in last.updates[-1:]:
                line.append(f"   entropy {update.entropy:.2f}   {update.reply_length:.0f} tokens")
        else:
            line.append("fits the reward model")
    else:
        what = f"{last.version} is {last.outcome}: " if last.version else ""
        ago = _ago(snapshot.time, last.ended_at)
        line = Text(f"  round {last.number}, {last.votes} votes, {ago} ago: {printable(what + last.reason)}")
    yield line
    heads = ", ".join(f"{printable(head.aspect)} {_number(head.auc)}" for head in last.heads)
    figures = [f"AUC {heads}"] if heads else []
    if last.updates:
        update = last.updates[-1]
        figures.append(f"reward {update.reward:+.2f}   KL {update.kl:.2f} of {last.kl_budget:.2f} nats")
    if figures:
        yield Text("  " + "   ".join(figures))


def _approval_title(shown: int, there: int) -> str:
    return "approval, with 95 % intervals" + (f" (the last {shown} of {there} versions)" if shown < there else "")


def _approvals(snapshot: Snapshot, width: int | None, glyphs: Glyphs) -> list[Text]:
    if snapshot.loop is None or snapshot.loop.learner is None or not snapshot.loop.learner.approvals:
        return [Text("  no votes yet")]
    states = {step.policy_version: step.state for step in snapshot.loop.releases}
    if snapshot.policies is not None:
        states |= {policy.version: policy.state for policy in snapshot.policies.policies}
    approvals = snapshot.loop.learner.approvals
    names = max(len(approval.policy_version) for approval in approvals)
    words = max((len(states.get(approval.policy_version, "")) for approval in approvals), default=0)
    rows = []
    for approval in approvals:
        state = states.get(approval.policy_version, "")
        line = Text(f"  {approval.policy_version:{names}} ")
        line.append(f"{state:{words}} ", style=_STYLES.get(state, ""))
        tail = "   no votes"
        if approval.rate is not None:
            tail = (
                f" {approval.rate:4.0%} [{approval.low:4.0%},{approval.high:4.0%}]"
                f" of {approval.up + approval.down} votes"
            )
        room = _MOST_BAR if width is None else min(_MOST_BAR, width - line.cell_len - len(tail))
        if room >= 8:
            line.append_text(_bar(approval, room, glyphs))
        rows.append(line.append(tail))
    return rows


def _bar(approval: Approval, cells: int, glyphs: Glyphs) -> Text:
    """0 to 100 % in so many cells: the interval, and in it the rate."""

    def place(share: float) -> int:
        return min(cells - 1, max(0, int(share * cells)))

    low, high = place(approval.low), place(approval.high)
    bar = Text(glyphs.empty * low, style="dim")
    bar.append(glyphs.span * (high - low + 1), style="not dim")
    bar.append(glyphs.empty * (cells - high - 1))
    if approval.rate is not None:
        at = place(approval.rate)
        bar = Text.assemble(bar[:at], (glyphs.point, "bold not dim"), bar[at + 1 :])
    return bar


_STYLES = {"stable": "green", "canary": "yellow", "rejected": "red", "rolled back": "red", "retired": "dim"}


def _steps(snapshot: Snapshot) -> list[Text]:
    steps = snapshot.loop.releases if snapshot.loop is not None else ()
    return [_step(step, snapshot.time) for step in steps] or [Text("  none yet")]


def _step(step: ReleaseStep, now: datetime) -> Text:
    at = step.time.astimezone()
    when = f"{at:%H:%M:%S}" if at.date() == now.astimezone().date() else f"{at:%b %d %H:%M}"
    line = Text(f"  {when} {step.policy_version} ")
    line.append(step.state, style=_STYLES.get(step.state, ""))
    if step.state == "canary":
        line.append(f" at {step.share:.3g}")
    by = f" (by {step.actor})" if step.actor != "learner" else ""
    return line.append(f": {printable(step.reason)}{printable(by)}")


def _title(words: str) -> Text:
    return Text(words, style="bold cyan")


def _fitted(line: Text, width: int | None, glyphs: Glyphs) -> Text:
    if glyphs is ASCII:
        # What the terminal cannot show is no reason to end.
        line = _recoded(line)
    if width is not None and line.cell_len > width:
        line = line.copy()
        line.truncate(max(0, width - cell_len(glyphs.cut)))
        line.append(glyphs.cut)
    line.no_wrap = True
    return line


def _recoded(line: Text) -> Text:
    plain = "".join(c if c.isascii() else "?" for c in line.plain)
    return Text(plain, style=line.style, spans=line.spans)


def _silence(now: datetime, learner: LearnerReport) -> str | None:
    if learner.time is None or (now - learner.time).total_seconds() < SILENT_SECONDS:
        return None
    return _ago(now, learner.time)


def _ago(now: datetime, then: datetime | None) -> str:
    if then is None:
        return "?"
    seconds = max(0, int((now - then).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
