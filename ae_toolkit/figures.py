"""The figure that any data type gets without drawing one itself, and how figures are written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from ae_toolkit.errors import UsageError
from ae_toolkit.files import RESULT_SIGNATURE, writing
from ae_toolkit.version import former_names

if TYPE_CHECKING:
    from torch import Tensor

FIGURE_DPI = 200

#: Matplotlib's settings, from which data types set out.
PLOT_STYLE: dict[Any, Any] = {
    "font.family": "serif",
    "font.serif": ["STIXGeneral", "DejaVu Serif"],
    "mathtext.fontset": "stix",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}

MAX_CURVES = 4  #: lines in one plot; more rows than that make a heat map


def save_figure(figure: Figure, path: Path, *, named: bool = True, style: dict[Any, Any]) -> None:
    """Writes a figure whole or not at all, in the format of its ending.

    Args:
        figure: drawn already.
        path: where to.
        named: as in `writing`.
        style: matplotlib's settings, under which its texts are set.

    Raises:
        UsageError: its ending is of no format that figures have.
        RunError: the place cannot be written.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"{path}: choose a name that ends in .png, .svg or .pdf")
    with rc_context(style), writing(path, named=named) as temporary:
        signed = {"Software" if path.suffix.lower() == ".png" else "Creator": RESULT_SIGNATURE}
        _savefig(figure, temporary, bbox_inches="tight", pad_inches=0.04, metadata=signed)


def draw_rows(rows: Mapping[str, Sequence[Tensor]], path: Path) -> None:
    """Draws named rows of tensors `(*shape)` into one PNG.

    What has one long axis is drawn as curves over it, up to four; anything else as a heat map of
    its last two axes. All share one scale, so that they can be compared.
    """
    flat = {
        name: [y.detach().float().cpu().reshape(-1, y.shape[-1] if y.dim() else 1) for y in row]
        for name, row in rows.items()
    }
    everything = [y for row in flat.values() for y in row]
    low, high = min(float(y.min()) for y in everything), max(float(y.max()) for y in everything)
    margin = 0.05 * (high - low) or 1.0
    curves = all(len(y) <= MAX_CURVES for y in everything)
    columns = max(len(row) for row in flat.values())
    size = (1.5 * columns, 1.1 * len(rows)) if curves else (1.2 * columns, 1.2 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    plots = figure.subplots(len(rows), columns, squeeze=False)
    for plot in plots.flat:
        plot.set(xticks=[], yticks=[])
        plot.spines[:].set_color("0.8")
        plot.spines[:].set_visible(False)
    for line, (name, row) in zip(plots, flat.items(), strict=True):
        line[0].set_ylabel(name, fontsize=8)
        for plot, y in zip(line, row, strict=False):
            plot.spines[:].set_visible(True)
            if curves:
                plot.plot(y.T, linewidth=1.0, solid_joinstyle="round")
                plot.set_ylim(low - margin, high + margin)
                plot.margins(x=0)
            else:
                plot.imshow(y, aspect="auto", interpolation="nearest", vmin=low, vmax=high)
    _savefig(figure, path)


def draw_roc(own: Mapping[str, Tensor], other: Mapping[str, Tensor], path: Path) -> None:
    """Draws how well each number, high for what is of other data, tells two data sets apart.

    Args:
        own: numbers `(N,)` by name, of what a model was trained on.
        other: the same of other data.
        path: of the figure.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    figure = Figure(figsize=(3.4, 3.4), layout="constrained")
    plot = figure.subplots()
    for name in own:
        is_other = [*[0] * len(own[name]), *[1] * len(other[name])]
        values = [*own[name].tolist(), *other[name].tolist()]
        false, true, _ = roc_curve(is_other, values)
        area = roc_auc_score(is_other, values)
        plot.plot(false, true, linewidth=1.2, label=f"{name.replace('_', ' ')}  {area:.3f}")
    plot.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
    plot.set(xlabel="share of the own data that is marked", xlim=(0, 1))
    plot.set(ylabel="share of the other data that is marked", ylim=(0, 1.01))
    plot.legend(frameon=False, fontsize=8, loc="lower right", title="area", title_fontsize=8)
    save_figure(figure, path, style=PLOT_STYLE)


def draw_rate_distortion(points: Sequence[tuple[float, float, float]], path: Path) -> None:
    """Draws spread, rate and distortion of each point, the model's own marked."""
    figure = Figure(figsize=(3.8, 3.0), layout="constrained")
    plot = figure.subplots()
    _spreads, rates, distortions = zip(*points, strict=True)
    plot.plot(rates, distortions, marker="o", markersize=3, linewidth=1.0, color="0.3")
    for spread, rate, distortion in points:
        own = spread == 1
        plot.annotate(
            f"{spread:g}σ", (rate, distortion), xytext=(4, 4), textcoords="offset points",
            fontsize=7, color="C3" if own else "0.3",
        )  # fmt: skip
        if own:
            plot.plot([rate], [distortion], marker="o", markersize=6, color="C3")
    plot.set(xlabel="rate, nats", ylabel="distortion")
    save_figure(figure, path, style=PLOT_STYLE)


def _savefig(figure: Figure, path: Path, **options: Any) -> None:
    """Writes a figure; letters that no font has, as in names of files, become boxes silently."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=FIGURE_DPI, **options)


__getattr__ = former_names(__name__, {"STYLE": "PLOT_STYLE", "DPI": "FIGURE_DPI"})
