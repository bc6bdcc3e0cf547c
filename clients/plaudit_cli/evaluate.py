"""`plaudit evaluate`: how good is what was learnt, on data that it was not learnt from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from plaudit_cli import learner_program
from plaudit_cli.common import DEFAULT_SERVER, Server, connect, fail, failures, printable

if TYPE_CHECKING:
    from plaudit_cli.comparison import Comparison


class _PoliciesUnlessSaid(TyperGroup):
    """`plaudit evaluate --version …` is `plaudit evaluate policies --version …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] != "--help":
            args = ["policies", *args]
        rest: list[str] = super().parse_args(ctx, args)
        return rest


app = typer.Typer(
    cls=_PoliciesUnlessSaid,
    name="evaluate",
    help="Judge what was learnt by data that it was not learnt from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _evaluate() -> None:
    """Makes this a group, whatever the number of its commands."""


@app.command()
def policies(
    *,
    version: Annotated[str, typer.Option(help="Which version, for instance v3.")],
    against: Annotated[str, typer.Option(help="The version that it is compared with.")] = "v0",
    prompts: Annotated[Path, typer.Option(help="What they are asked: .jsonl, or .txt with one prompt on each line.")],
    samples: Annotated[int, typer.Option(min=1, help="Replies of each version to each prompt.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest reply.")] = 48,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.7,
    seed: Annotated[int, typer.Option(help="The same seed samples the same replies.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="How many prompts at once.")] = 4,
    persona: Annotated[
        str, typer.Option(help="Whose true approval is told: brief, …; or path/to/file.py:Class, your own.")
    ] = "",
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report with plots.")] = None,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Two versions side by side on the same prompts; through a running server, and nothing is recorded."""
    from rich.console import Console
    from rich.progress import Progress

    from plaudit_cli import comparison_report, personas
    from plaudit_cli import prompts as prompt_files
    from plaudit_cli.comparison import Sampling, compare

    sampling = Sampling(samples, max_tokens, temperature, seed)
    with failures():
        who = personas.load(persona) if persona else None
        asked = prompt_files.read(prompts)
        if html is not None:
            comparison_report.require_plots()

        async def go() -> Comparison:
            told_on = Console(stderr=True)  # what is printed is the answer alone
            with Progress(console=told_on, transient=True, disable=not told_on.is_terminal) as progress:
                bar = progress.add_task(f"{version} and {against}", total=None)
                async with connect(server) as client:
                    return await compare(
                        client,
                        asked,
                        version,
                        against,
                        sampling,
                        persona=who,
                        concurrency=concurrency,
                        watch=lambda done, total: progress.update(bar, completed=done, total=total),
                    )

        found = asyncio.run(go())
        _print(found)
        if html is not None:
            told = (
                f"{len(found.pairs)} pairs of replies to the prompts of {prompts.name}, of at most {max_tokens} "
                f"tokens, temperature {temperature:g}, seed {seed}; the same seed on both sides. Of top_p and stop "
                "strings the server's defaults applied (--default-top-p, --default-stop)."
            )
            if who is not None:
                told += f" True approval is that of {who.name}: {who.description}."
            comparison_report.write(found, told, html)
            print(f"report: {html}")


def _print(found: Comparison) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from plaudit_cli.comparison_report import cells

    console = Console()
    # A pipe has no width: whoever reads it wants whole lines.
    width = None if console.is_terminal else 10_000
    replies = Table("prompt", found.version, found.against, box=None, pad_edge=False, show_lines=True)
    for pair in found.pairs:
        texts = (pair.prompt.text, pair.ours.text, pair.theirs.text)
        replies.add_row(*(escape(printable(" ".join(text.split()))) for text in texts))
    console.print(replies, width=width, soft_wrap=not console.is_terminal)
    console.print()
    figures = Table("", found.version, found.against, "difference ± standard error", box=None, pad_edge=False)
    for row in found.rows:
        figures.add_row(*cells(row))
    console.print(figures, width=width, soft_wrap=not console.is_terminal)
    print(f"{len(found.pairs)} pairs of replies, {found.identical:.0%} identical; {found.skipped} prompts too long")


@app.command("reward-model")
def reward_model(
    *,
    data: Annotated[Path, typer.Option(help="Judgements, JSON Lines as `plaudit import` takes them.")],
    learner: Annotated[Path, typer.Option(help="The learner's directory.")] = Path(".plaudit/learner"),
    model: Annotated[str, typer.Option(help="The deployment's: smollm2, or a directory.")] = "smollm2",
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report with the reliability plot.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Accuracy on pairs, AUC and calibration on thumbs, with 95 % intervals; what was trained on is left out."""
    if not (learner / "experience.sqlite").exists():
        fail(f"{learner} is no learner's directory (there is no experience.sqlite): give --learner")
    learner_program.run(
        "reward.evaluate",
        f"--data={data}",
        f"--state-dir={learner}",
        f"--model={model}",
        *([] if html is None else [f"--html={html}"]),
        *(["--as-json"] if as_json else []),
    )
