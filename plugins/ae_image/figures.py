"""Pictures for people: montages, grids and scatter plots that look as if made for a paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image as Pictures

from ae_image.pixels import flatten
from ae_toolkit import figures
from ae_toolkit.files import RESULT_SIGNATURE, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

Picture = Pictures.Image

#: Ten colours that stay apart in the common kinds of colour blindness (after Okabe and Ito 2008,
#: and Petroff 2021, arXiv:2107.02270), in an order that keeps neighbours far from each other.
CLASS_COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip

PLOT_STYLE = figures.PLOT_STYLE | {
    "axes.titlesize": 10,
    "xtick.direction": "out",
    "ytick.direction": "out",
}

MAX_MAPS = 64  #: of each level of a code that are drawn
CELL_PIXELS = 224  #: pixels of a place in a figure of unlike pictures: eight for each of a digit's


save_figure = partial(figures.save_figure, style=PLOT_STYLE)  #: whole or not at all


def montage(rows: Sequence[Sequence[Picture]], *, gap: int = 0) -> Picture:
    """Pictures of one size on a white sheet, `gap` pixels apart."""
    width, height = rows[0][0].size
    columns = max(len(row) for row in rows)
    coloured = any(picture.mode == "RGB" for row in rows for picture in row)
    sheet = Pictures.new(
        "RGB" if coloured else rows[0][0].mode,
        (columns * (width + gap) - gap, len(rows) * (height + gap) - gap),
        "white",
    )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet.paste(picture, (j * (width + gap), i * (height + gap)))
    return sheet


def rows_figure(
    rows: Mapping[str, Sequence[Picture]],
    *,
    captions: Sequence[str] = (),
    cell: tuple[int, int] | None = None,
) -> Figure:
    """Named rows of pictures, the names at the left, a caption below each column.

    Args:
        rows: name -> pictures; those of unlike sizes are brought to one, pixels kept sharp.
        captions: for the columns.
        cell: width and height of a picture's place; None: that of the pictures.
    """
    names = list(rows)
    sizes = {picture.size for row in rows.values() for picture in row}
    cell = cell or (sizes.pop() if len(sizes) == 1 else (CELL_PIXELS, CELL_PIXELS))
    pictures = [[in_cell(picture, cell) for picture in row] for row in rows.values()]
    sheet = montage(pictures, gap=max(cell[0] // 14, 2))
    step = [side + max(cell[0] // 14, 2) for side in cell]
    with rc_context(PLOT_STYLE):
        columns = max(map(len, pictures))
        width = 6.0 if columns > 3 else 2.0 * columns
        figure = Figure(figsize=(width, width * sheet.height / sheet.width))
        axes = figure.add_axes((0, 0, 1, 1))
        show(axes, sheet)
        axes.set_yticks([step[1] * i + cell[1] / 2 - 0.5 for i in range(len(names))], names)
        axes.tick_params(length=0)
        places = [step[0] * i + cell[0] / 2 - 0.5 for i in range(len(captions))]
        axes.set_xticks(places, captions, fontsize=8)
    return figure


def maps_figure(
    original: Picture, levels: Sequence[Tensor], made: Picture, *, num_classes: int
) -> Figure:
    """A picture, the maps of its code, and what is made of them.

    Args:
        original: what was encoded.
        levels: of the code, `(Z, H, W)` each.
        made: the picture that was decoded.
        num_classes: how many values a map has where they are integers, which are then written
            into their cells; 0: real numbers, red above zero and blue below.
    """
    maps = [plane for level in levels for plane in level[:MAX_MAPS]]
    columns = min(len(maps), 8)
    lines = math.ceil(len(maps) / columns)
    with rc_context(PLOT_STYLE):
        side = 2.4 if columns == 1 else 1.2  # inches; alone, there is room for its numbers
        figure = Figure(figsize=(side * (columns + 2), 1.05 * side * lines), layout="constrained")
        places = figure.add_gridspec(lines, columns + 2)
        for place, picture, title in (
            (places[:, 0], original, "picture"),
            (places[:, -1], made, "decoded"),
        ):
            axes = figure.add_subplot(place)
            show(axes, picture)
            axes.set(xticks=[], yticks=[], title=title)
        limit = max(float(plane.abs().max()) for plane in maps) or 1.0
        for i, plane in enumerate(maps):
            axes = figure.add_subplot(places[i // columns, 1 + i % columns])
            axes.set(xticks=[], yticks=[], title=f"map {i}")
            if not num_classes:
                axes.imshow(plane.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
                continue
            axes.imshow(plane.numpy(), cmap="viridis", vmin=0, vmax=num_classes - 1)
            for y, row in enumerate(plane.tolist()):
                for x, value in enumerate(row):
                    bright = value > 0.6 * num_classes
                    axes.text(
                        x, y, f"{value:.0f}", ha="center", va="center",
                        fontsize=18 * side / len(row), color="black" if bright else "white",
                    )  # fmt: skip
    return figure


def in_cell(picture: Picture, cell: tuple[int, int]) -> Picture:
    """A picture, its shape kept, in the middle of a white cell."""
    if picture.size == cell:
        return picture
    share = min(cell[0] / picture.width, cell[1] / picture.height)
    size = [max(round(share * side), 1) for side in picture.size]
    sharp = Pictures.Resampling.NEAREST if share > 1 else Pictures.Resampling.LANCZOS
    picture = flatten(picture, "RGB")
    sheet = Pictures.new("RGB", cell, "white")
    corner = (cell[0] - size[0]) // 2, (cell[1] - size[1]) // 2
    sheet.paste(picture.resize(size, sharp), corner)
    return sheet


def show(axes: Axes, picture: Picture) -> None:
    """One picture in axes without a frame, pixels kept sharp, grey as grey."""
    axes.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    for spine in axes.spines.values():
        spine.set_visible(False)


def grid_figure(
    pictures: Sequence[Sequence[Picture]],
    *,
    across: Sequence[float] | None = None,
    down: Sequence[float] | None = None,
    labels: tuple[str, str] = ("$z_1$", "$z_2$"),
    corners: Sequence[tuple[int, int]] = (),
    columns: str = "",
) -> Figure:
    """A square of pictures, with the latent coordinates of rows and columns as ticks.

    Args:
        pictures: rows of equal length.
        across: the coordinate of each column; none: no ticks.
        down: the coordinate of each row.
        labels: what the coordinates are called.
        corners: `(row, column)` of pictures to frame.
        columns: what the columns are, where they are numbered classes.
    """
    sheet = montage(pictures)
    width, height = pictures[0][0].size
    with rc_context(PLOT_STYLE):
        figure = Figure(figsize=(5.0, 5.0 * sheet.height / sheet.width))
        axes = figure.add_axes((0, 0, 1, 1))
        show(axes, sheet)
        axes.tick_params(length=2, pad=2)
        for values, size, ticks in (
            (across, width, axes.set_xticks),
            (down, height, axes.set_yticks),
        ):
            if values is None:
                ticks([])
                continue
            # At most nine ticks, symmetric about the middle.
            every = max(1, -(-len(values) // 9))
            first = (len(values) - 1) % every // 2
            shown = range(first, len(values), every)
            names = [f"{values[i] + 0.0:.1f}".replace("-0.0", "0.0") for i in shown]
            ticks([(i + 0.5) * size - 0.5 for i in shown], [n.replace("-", "−") for n in names])
        if across is not None:
            axes.set_xlabel(labels[0])
            axes.set_ylabel(labels[1])
        if columns:
            axes.set_xticks([(k + 0.5) * width - 0.5 for k in range(len(pictures[0]))])
            axes.set_xticklabels([str(k) for k in range(len(pictures[0]))])
            axes.set_xlabel(columns)
        for row, column in corners:
            place = column * width - 0.5, row * height - 0.5
            axes.add_patch(
                Rectangle(place, width, height, fill=False, edgecolor="#ffa90e", linewidth=1.5)
            )
    return figure


def animate(pictures: Sequence[Picture], path: Path, *, scale: int = 8) -> None:
    """Writes pictures as a GIF that walks there and back, pixels kept sharp.

    Args:
        pictures: of one size.
        path: ends in .gif.
        scale: how many times as large, while the picture stays below 512 pixels.
    """
    width, height = pictures[0].size
    scale = max(min(scale, 512 // max(width, height)), 1)
    size = width * scale, height * scale
    frames = [picture.resize(size, Pictures.Resampling.NEAREST) for picture in pictures]
    there_and_back = [*frames, *frames[-2:0:-1]]
    with writing(path, named=False) as temporary:
        there_and_back[0].save(
            temporary,
            save_all=True,
            append_images=there_and_back[1:],
            duration=120,
            loop=0,
            comment=RESULT_SIGNATURE.encode(),
        )


def scatter_figure(
    panels: Mapping[str, tuple[np.ndarray, str, str]], classes: np.ndarray, *, name: str
) -> Figure:
    """Codes coloured by class, one panel beside the other, each class named at its middle.

    Args:
        panels: title -> `(N, 2)` points and the names of the two axes.
        classes: `(N,)`.
        name: what the classes are, for the legend.
    """
    with rc_context(PLOT_STYLE):
        figure = Figure(figsize=(3.6 * len(panels), 3.6), layout="constrained")
        shuffled = np.random.default_rng(0).permutation(len(classes))  # no class on top of all
        for axes, (title, (points, x, y)) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            axes.scatter(
                *points[shuffled].T,
                c=[CLASS_COLOURS[k % len(CLASS_COLOURS)] for k in classes[shuffled]],
                s=2.5,
                linewidths=0,
                alpha=0.7,
                rasterized=True,
            )
            for k in np.unique(classes):
                middle = np.median(points[classes == k], 0)
                axes.text(
                    *middle, str(k), ha="center", va="center", fontsize=10, fontweight="bold",
                    bbox=dict(boxstyle="circle,pad=0.2", fc="white", lw=1.2,
                              ec=CLASS_COLOURS[k % 10]),
                )  # fmt: skip
            # The outermost points would make the crowd small.
            low, high = np.quantile(points, [0.002, 0.998], axis=0)
            margin = 0.05 * (high - low)
            axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
            axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
            axes.set_title(title)
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            axes.spines[["top", "right"]].set_visible(False)
        handles = [
            axes.scatter([], [], s=16, color=CLASS_COLOURS[k % len(CLASS_COLOURS)], label=str(k))
            for k in np.unique(classes)
        ]
        figure.legend(
            handles=handles, title=name, loc="outside right center", frameon=False, handletextpad=0
        )
    return figure
