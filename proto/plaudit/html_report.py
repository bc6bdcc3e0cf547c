"""A report for people as one file that needs no other, readable in light and in dark; its plots are matplotlib's."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib.util import find_spec
from typing import Any

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; width: 100% }
td, th { border-bottom: 1px solid #8886; padding: .3rem .75rem; text-align: left }
img { background: #fff; border-radius: .5rem; max-width: 100%; margin: .5rem 0 }
"""


def require_plots() -> None:
    """Raises ValueError if what draws the plots is not installed: better said before the work than after."""
    if find_spec("matplotlib") is None:
        raise ValueError(
            "--html draws with matplotlib, which is not installed: pip install 'plaudit[instruct]', or leave --html out"
        )


def page(title: str, body: str, style: str = "") -> str:
    """The file's content. body: HTML, its texts escaped; style: CSS after that of all reports."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def data_url(figure: Any) -> str:
    """A figure of matplotlib as an image of its own: in one page the ids of two cannot meet."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
