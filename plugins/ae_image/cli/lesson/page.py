"""A page of chapters in HTML: claims with numbers and figures, which it holds itself."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from ae_image.figures import PLOT_STYLE
from ae_toolkit.figures import FIGURE_DPI

PAGE_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Autoencoders: a lesson that was run</title>
<style>
body {{ font: 17px/1.55 Georgia, serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem;
        color: #1b1b1b; background: #fffefb; }}
h1, h2 {{ line-height: 1.2; font-weight: 600; }}
section {{ margin: 3rem 0; }}
table {{ border-collapse: collapse; font-size: 0.92em; margin: 1rem 0; }}
th {{ text-align: left; font-weight: normal; padding: 0.15rem 2rem 0.15rem 0; color: #555; }}
td {{ font-variant-numeric: tabular-nums; }}
figure {{ margin: 0; }}
img {{ max-width: 100%; display: block; margin: 1rem auto; }}
</style>
<h1>Autoencoders: a lesson that was run</h1>
<p>{about}</p>
{body}
</html>
"""


class Chapter(NamedTuple):
    """One claim: its title, what is said, what was measured, and what it looks like."""

    title: str
    text: str
    numbers: Mapping[str, str]
    figures: Sequence[Figure]


def section_of(chapter: Chapter, *, number: int) -> str:
    """A chapter in HTML."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in chapter.numbers.items()
    )
    figures = "".join(
        f'<img alt="{html.escape(chapter.title)}" src="data:image/png;base64,{_embedded(figure)}">'
        for figure in chapter.figures
    )
    return (
        f"<section><h2>{number}. {html.escape(chapter.title)}</h2><p>{html.escape(chapter.text)}"
        f"</p><table>{rows}</table><figure>{figures}</figure></section>"
    )


def _embedded(figure: Figure) -> str:
    buffer = io.BytesIO()
    with rc_context(PLOT_STYLE):
        figure.savefig(buffer, dpi=FIGURE_DPI, bbox_inches="tight", pad_inches=0.04)
    return base64.b64encode(buffer.getvalue()).decode()
