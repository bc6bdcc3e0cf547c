"""`plaudit evaluate --html`: a comparison as one file that needs no other, readable in light and in dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from plaudit import html_report
from plaudit_cli.common import CommandError
from plaudit_cli.comparison import Comparison, Row, Said

_STYLE = """body { max-width: 70rem } td, th { vertical-align: top }
td.n { font-variant-numeric: tabular-nums } td.t { white-space: pre-wrap; width: 33% } small { opacity: .7 }
"""


def require_plots() -> None:
    """Raises CommandError if what draws the plots is not installed: better said before the first reply than after."""
    try:
        html_report.require_plots()
    except ValueError as error:
        raise CommandError(str(error)) from None


def write(comparison: Comparison, told: str, target: Path) -> None:
    """Write the report. `told`: how it was sampled, in words. Raises CommandError if the file cannot be written."""
    page = _page(comparison, told)
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{target}: cannot be written: {error.strerror}") from error


def cells(row: Row) -> tuple[str, str, str, str]:
    """A figure as it is shown: its name, both sides, and the difference with its standard error."""
    change = f"{row.ours - row.theirs:+.3f}"
    if row.error is not None and row.error == row.error:  # nan: of one prompt only
        change += f" ± {row.error:.3f}"
    return row.name, f"{row.ours:.3f}", f"{row.theirs:.3f}", change


def _page(comparison: Comparison, told: str) -> str:
    ours, theirs = escape(comparison.version), escape(comparison.against)
    figures = "\n".join(
        "<tr>" + "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells(row)) + "</tr>"
        for row in comparison.rows
    )
    replies = "\n".join(
        f'<tr><td class="t">{escape(pair.prompt.text)}</td>{_reply(pair.ours)}{_reply(pair.theirs)}</tr>'
        for pair in comparison.pairs
    )
    plots = "\n".join(f'<img alt="{escape(name)}" src="{source}">' for name, source in _plots(comparison))
    body = f"""<p>{escape(told)} Identical replies: {comparison.identical:.0%}.
Prompts left out, too long: {comparison.skipped}.</p>
<table>
<tr><th></th><th>{ours}</th><th>{theirs}</th><th>difference ± standard error, paired by prompt</th></tr>
{figures}
</table>
{plots}
<table>
<tr><th>prompt</th><th>{ours}</th><th>{theirs}</th></tr>
{replies}
</table>"""
    return html_report.page(f"{comparison.version} against {comparison.against}", body, _STYLE)


def _reply(said: Said) -> str:
    liked = "" if said.approval is None else f", approval {said.approval:.2f}"
    cut = "" if said.finished else ", cut off"
    return f'<td class="t">{escape(said.text)}<br><small>{said.tokens} tokens{cut}{liked}</small></td>'


def _plots(comparison: Comparison) -> list[tuple[str, str]]:
    """Name and data URL of each."""
    sides = [[pair.ours for pair in comparison.pairs], [pair.theirs for pair in comparison.pairs]]
    plots = [("Length", _histogram(comparison, "tokens a reply", [[said.tokens for said in side] for side in sides]))]
    if sides[0][0].approval is not None:
        liked = [[said.approval or 0.0 for said in side] for side in sides]
        plots.append(("True approval", _histogram(comparison, "true approval of a reply", liked)))
    return plots


def _histogram(comparison: Comparison, across: str, values: Sequence[Sequence[float]]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.0), layout="constrained")  # inches
    axes: Any = figure.subplots()
    axes.hist(values, bins=20, label=[comparison.version, comparison.against])
    axes.set_xlabel(across)
    axes.set_ylabel("replies")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    return html_report.data_url(figure)
