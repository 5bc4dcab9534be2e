"""Pictures for people: spectrograms, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from ae_audio.dsp import spectrum
from ae_audio.dsp.sound import Sound
from ae_toolkit import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

INK_COLOUR = "#33373d"

PLOT_STYLE = figures.PLOT_STYLE | {
    "text.color": INK_COLOUR,
    "axes.labelcolor": INK_COLOUR,
    "xtick.labelcolor": INK_COLOUR,
    "ytick.labelcolor": INK_COLOUR,
}

MAX_COLUMNS = 10  #: panels in a row at most; of more, as many, evenly chosen
PANEL_INCHES = 1.55, 1.5  #: inches
TICK_HERTZ = (125, 250, 500, 1000, 2000, 4000)  #: hertz
MIN_HERTZ = 80.0
PANEL_ROWS = 240  #: rows of a panel, evenly spaced in octaves


def spectrogram_figure(rows: Mapping[str, Sequence[Sound]], path: Path) -> None:
    """Draws named rows of spectrograms: time to the right, octaves upwards, dark is loud.

    Args:
        rows: name -> sounds.
        path: where to, .png, .svg or .pdf.
    """
    shown = {name: _chosen(row) for name, row in rows.items()}
    columns = max(map(len, shown.values()))
    with rc_context(PLOT_STYLE):
        size = PANEL_INCHES[0] * columns + 0.6, PANEL_INCHES[1] * len(shown) + 0.5
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(shown), columns, squeeze=False)
        for panels, (name, row) in zip(grid, shown.items(), strict=True):
            for i, panel in enumerate(panels):
                if i >= len(row):
                    panel.set_axis_off()
                    continue
                image = _draw(panel, row[i], labelled=i == 0)
                if row[i].name:
                    panel.set_title(row[i].name, pad=3)
            panels[0].set_ylabel(f"{name}\nHz" if name else "Hz")
        grid[-1][0].set_xlabel("seconds")
        bar = figure.colorbar(image, ax=grid, shrink=0.8, aspect=25 * len(shown), pad=0.01)
        bar.set_label("dB")
        bar.outline.set_linewidth(0.6)
    figures.save_figure(figure, path, style=PLOT_STYLE)


def _draw(panel: Axes, sound: Sound, *, labelled: bool) -> AxesImage:
    """One spectrogram in axes; `labelled` says whether hertz are written beside it."""
    samples = sound.at(spectrum.SAMPLE_RATE).samples
    missing = max(spectrum.WINDOW_SAMPLES - len(samples), 0)
    levels = spectrum.analyse(torch.nn.functional.pad(samples, (0, missing))[None])[0].numpy()
    octaves = math.log2(spectrum.SAMPLE_RATE / 2 / MIN_HERTZ)
    hertz = MIN_HERTZ * 2 ** np.linspace(0, octaves, PANEL_ROWS)
    rows = (hertz * spectrum.WINDOW_SAMPLES / spectrum.SAMPLE_RATE - 1).clip(0, levels.shape[1] - 1)
    low = rows.astype(int)
    high = (low + 1).clip(max=levels.shape[1] - 1)
    plane = levels[:, low] * (1 - (rows - low)) + levels[:, high] * (rows - low)
    image = panel.imshow(
        (plane.T - 1) * spectrum.RANGE_DECIBELS,
        origin="lower",
        aspect="auto",
        cmap="magma_r",
        vmin=-spectrum.RANGE_DECIBELS,
        vmax=0,
        extent=(0, len(samples) / spectrum.SAMPLE_RATE, 0, octaves),
    )
    panel.set_yticks([math.log2(tick / MIN_HERTZ) for tick in TICK_HERTZ])
    panel.set_yticklabels(
        [f"{tick / 1000:g}k" if tick >= 1000 else f"{tick}" for tick in TICK_HERTZ]
    )
    panel.tick_params(labelleft=labelled, length=2)
    return image


def _chosen(row: Sequence[Sound]) -> list[Sound]:
    if len(row) <= MAX_COLUMNS:
        return list(row)
    return [row[round(i * (len(row) - 1) / (MAX_COLUMNS - 1))] for i in range(MAX_COLUMNS)]
