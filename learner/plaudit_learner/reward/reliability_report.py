"""`plaudit evaluate reward-model --html`: the figures and the reliability plot as one file that needs no other."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plaudit_learner.reward.calibration import Bin
    from plaudit_learner.reward.report import Figure

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; width: 100% }
td, th { border-bottom: 1px solid #8886; padding: .3rem .75rem; text-align: left; font-variant-numeric: tabular-nums }
img { background: #fff; border-radius: .5rem; max-width: 100%; margin: .5rem 0 }
"""


def require_plots() -> None:
    """Raises ValueError if what draws the plot is not installed: better said before the replies are read than after."""
    if find_spec("matplotlib") is None:
        raise ValueError(
            "--html draws its plot with matplotlib, which is not installed: pip install 'plaudit[instruct]', or leave "
            "--html out"
        )


def write(target: Path, told: str, figures: Sequence[Figure], tables: Mapping[str, Sequence[Bin]]) -> None:
    """Write the report. tables: what was predicted beside what came, by aspect. Raises OSError."""
    rows = [
        (figure.aspect, figure.what, f"{figure.value:.3f}", figure.between, figure.judgements) for figure in figures
    ]
    parts = [_table(("aspect", "what", "value", "95 %", "judgements"), rows)]
    for aspect, table in tables.items():
        bins = [(f"{row.predicted:.3f}", f"{row.observed:.3f}", f"{row.count:g}") for row in table]
        parts += [
            f"<h2>Reliability: {escape(aspect)}</h2>",
            f'<img alt="Reliability of {escape(aspect)}" src="{_plot(table)}">',
            _table(("predicted probability of a thumb up", "share of thumbs up", "thumbs"), bins),
        ]
    body = "\n".join(parts)
    target.write_text(
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Reward model</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Reward model</h1>
<p>{escape(told)}</p>
{body}
</body>
</html>
""",
        encoding="utf-8",
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    return "\n".join(["<table>", f"<tr>{head}</tr>", *(f"<tr>{row}</tr>" for row in cells), "</table>"])


def _plot(table: Sequence[Bin]) -> str:
    """A data URL: an image of its own each, so that their ids cannot meet."""
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
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
