"""`plaudit evaluate reward-model --html`: the figures and the reliability plot as one file that needs no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit import html_report

if TYPE_CHECKING:
    from plaudit_learner.reward.calibration import Bin
    from plaudit_learner.reward.report import Figure

_STYLE = "td, th { font-variant-numeric: tabular-nums }\n"


def write(target: Path, told: str, figures: Sequence[Figure], tables: Mapping[str, Sequence[Bin]]) -> None:
    """Write the report. tables: what was predicted beside what came, by aspect. Raises OSError."""
    rows = [
        (figure.aspect, figure.what, f"{figure.value:.3f}", figure.between, figure.judgements) for figure in figures
    ]
    parts = [f"<p>{escape(told)}</p>", _table(("aspect", "what", "value", "95 %", "judgements"), rows)]
    for aspect, table in tables.items():
        bins = [(f"{row.predicted:.3f}", f"{row.observed:.3f}", f"{row.count:g}") for row in table]
        parts += [
            f"<h2>Reliability: {escape(aspect)}</h2>",
            f'<img alt="Reliability of {escape(aspect)}" src="{_plot(table)}">',
            _table(("predicted probability of a thumb up", "share of thumbs up", "thumbs"), bins),
        ]
    target.write_text(html_report.page("Reward model", "\n".join(parts), _STYLE), encoding="utf-8")


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    return "\n".join(["<table>", f"<tr>{head}</tr>", *(f"<tr>{row}</tr>" for row in cells), "</table>"])


def _plot(table: Sequence[Bin]) -> str:
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(5.0, 5.0), layout="constrained")  # inches
    axes: Any = figure.subplots()
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey", label="calibrated")
    predicted, observed = [row.predicted for row in table], [row.observed for row in table]
    most = max(row.count for row in table)
    axes.plot(predicted, observed, alpha=0.5)
    areas = [20 + 180 * row.count / most for row in table]  # square points
    axes.scatter(predicted, observed, s=areas, label="a tenth; its area: how many thumbs")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="predicted probability of a thumb up")
    axes.set_ylabel("share of thumbs up")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return html_report.data_url(figure)
