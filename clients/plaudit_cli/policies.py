"""`plaudit policies`: for operators, which versions there are and which one answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from plaudit.releases import CANARY_METRICS
from plaudit_cli.common import DEFAULT_CONTROL, Control, connect, failures

if TYPE_CHECKING:
    from plaudit_client import AsyncClient, GateCheck, Policies, Policy

app = typer.Typer(
    name="policies",
    help="List, show, watch, try out, promote and roll back policy versions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
T = TypeVar("T")

Version = Annotated[str, typer.Argument(help="For instance v3.")]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]


@app.command("list")
def list_(control: Control = DEFAULT_CONTROL) -> None:
    """All versions, oldest first, and the one that answers."""
    _print_table(_ask(control, lambda client: client.list_policies()))


@app.command()
def show(version: Version, control: Control = DEFAULT_CONTROL) -> None:
    """All that is known of one version."""
    policy = _ask(control, lambda client: client.get_policy(version))
    lines = [
        ("version", policy.version),
        ("parent", policy.parent or "none"),
        ("reference", policy.reference or "v0"),
        ("state", policy.state + (f", at {policy.share:.3g} of conversations" if policy.state == "canary" else "")),
        ("since", _when(policy)),
        ("reason", policy.reason or "none given"),
        *((name, f"{value:g}") for name, value in sorted(_of_the_gate(policy).items())),
    ]
    if tally := _tally(policy):
        lines.append(("votes", tally))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:{width}}  {value}")
    if policy.checks:
        print()
        _print_checks(policy.checks)


@app.command()
def promote(version: Version, reason: Reason = "", control: Control = DEFAULT_CONTROL) -> None:
    """Make a version stable on all servers."""
    policy = _ask(control, lambda client: client.promote_policy(version, reason))
    print(f"{policy.version} is {policy.state}")


@app.command()
def rollback(
    version: Annotated[str, typer.Argument(help="For instance v3; left out: the stable one.")] = "",
    reason: Reason = "",
    control: Control = DEFAULT_CONTROL,
) -> None:
    """Take a version out of service on all servers."""
    policy, serving = _ask(control, lambda client: client.rollback_policy(version, reason))
    print(f"{policy.version} is {policy.state}; {serving} serves")


@app.command()
def share(
    version: Version,
    share: Annotated[float, typer.Argument(help="Of conversations, 0 to below 1; for instance 0.1.")],
    reason: Reason = "",
    control: Control = DEFAULT_CONTROL,
) -> None:
    """Try a version out on a share of conversations, on all servers; votes decide what becomes of it."""
    policy = _ask(control, lambda client: client.set_canary_share(version, share, reason))
    print(f"{policy.version} is {policy.state}, at {policy.share:.3g} of conversations")


@app.command()
def watch(control: Control = DEFAULT_CONTROL) -> None:
    """Where every version stands, and each change as it happens, until Ctrl-C."""

    async def follow(client: AsyncClient) -> None:
        async for policy in client.watch_policies():
            at = f" at {policy.share:.3g}" if policy.state == "canary" else ""
            tally = f" ({found})" if (found := _tally(policy)) else ""
            print(f"{_when(policy):19}  {policy.version:5} {policy.state}{at}: {policy.reason}{tally}", flush=True)

    _ask(control, follow)


def _ask(control: str, question: Callable[[AsyncClient], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with connect(control) as client:
            return await question(client)

    with failures():
        return asyncio.run(ask())


def _print_table(answer: Policies) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("version", "state", "parent", "since", "metrics", "votes", "reason", box=None, pad_edge=False)
    for policy in answer.policies:
        serves = policy.version == answer.serving_version
        metrics = ", ".join(f"{name} {value:.3g}" for name, value in sorted(_of_the_gate(policy).items()))
        loaded = " (loaded)" if policy.version in answer.loaded_versions and not serves else ""
        cells = (
            policy.version,
            policy.state
            + (f" at {policy.share:.3g}" if policy.state == "canary" else "")
            + (" (serves)" if serves else loaded),
            policy.parent,
            _when(policy),
            metrics,
            _tally(policy),
            policy.reason,
        )
        table.add_row(*map(escape, cells), style="bold" if serves else None)
    console = Console()
    # A pipe has no width: whoever reads it wants whole lines.
    console.print(table, width=None if console.is_terminal else 10_000, soft_wrap=not console.is_terminal)
    for version, reason in sorted(answer.failures.items()):
        print(f"{version} cannot be served here: {reason}")


def _of_the_gate(policy: Policy) -> dict[str, float]:
    return {name: value for name, value in policy.metrics.items() if not name.startswith(CANARY_METRICS)}


def _tally(policy: Policy) -> str:
    """How the canary was liked beside the stable version, as far as the learner has announced it; empty: not yet."""
    found = {
        name.removeprefix(CANARY_METRICS): f for name, f in policy.metrics.items() if name.startswith(CANARY_METRICS)
    }
    if not {"approval", "votes", "stable_approval", "stable_votes"} <= found.keys():
        return ""
    ours, theirs = (f"{found[p + 'approval']:.2f} of {found[p + 'votes']:.0f}" for p in ("", "stable_"))
    return f"{ours}, stable {theirs}"


def _print_checks(checks: Sequence[GateCheck]) -> None:
    """The gate's table, aligned in a pipe as well."""
    rows = [("the gate", "this version", "reference", "bound", "")]
    for check in checks:
        reference = f"{check.reference:.3f}" + (" (parent)" if check.measure == "reward" else "")
        bound = f"{'at most' if check.upper else 'at least'} {check.bound:.3f}"
        rows.append((check.measure, f"{check.candidate:.3f}", reference, bound, "ok" if check.kept else "REJECTED"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _when(policy: Policy) -> str:
    return policy.changed_at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if policy.changed_at else "the beginning"
