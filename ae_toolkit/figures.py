"""The figure that any data type gets without drawing one itself, and how figures are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from ae_toolkit.checkpoint import writing
from ae_toolkit.errors import Misuse

if TYPE_CHECKING:
    from torch import Tensor

DPI = 200


def save_figure(figure: Figure, path: Path, *, style: dict[Any, Any]) -> None:
    """Writes a figure whole or not at all, in the format of its ending.

    Args:
        figure: drawn already.
        path: where to.
        style: matplotlib's settings, under which its texts are set.

    Raises:
        Misuse: its ending is of no format that figures have.
        Failure: the place cannot be written.
    """
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in known:
        raise Misuse(f"{path}: choose a name that ends in .png, .svg or .pdf")
    with rc_context(style), writing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, bbox_inches="tight", pad_inches=0.04)


def draw_rows(rows: Mapping[str, Sequence[Tensor]], path: Path) -> None:
    """Draws named rows of tensors `(*shape)` into one PNG.

    What has one long axis is drawn as a curve (its other axis as several curves); anything else
    as a heat map of its last two axes.
    """
    columns = max(len(row) for row in rows.values())
    figure = Figure(figsize=(1.2 * columns, 1.2 * len(rows)), layout="constrained")
    plots = figure.subplots(len(rows), columns, squeeze=False)
    for plot in plots.flat:
        plot.set_xticks([])
        plot.set_yticks([])
    for line, (name, row) in zip(plots, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for plot, tensor in zip(line, row, strict=False):
            flat = (
                tensor.detach().float().cpu().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
            )
            if len(flat) <= 4:
                plot.plot(flat.T, linewidth=0.7)
            else:
                plot.imshow(flat, aspect="auto", interpolation="nearest")
    figure.savefig(path, dpi=150)
