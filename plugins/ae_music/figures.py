"""Pictures for people: piano rolls, and the way from one melody to another."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ae_music.grid import Melody, read_steps
from ae_toolkit import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: From A to B, which stay apart in the common kinds of colour blindness: blue, plum, orange.
BLEND_COLOURS = LinearSegmentedColormap.from_list(
    "blend", ("#2b6cb0", "#8b5c9e", "#c9607a", "#df7d1f")
)

#: Of rows and lines: those of A and B, a green, a grey.
VOICE_COLOURS = ("#2b6cb0", "#df7d1f", "#3a8f76", "#7a7f87")

INK_COLOUR, BAR_LINE_COLOUR, LINE_COLOUR = "#33373d", "#c3c7cd", "#e8eaed"

PLOT_STYLE = figures.PLOT_STYLE | {
    "text.color": INK_COLOUR,
    "axes.labelcolor": INK_COLOUR,
    "axes.titlecolor": INK_COLOUR,
    "xtick.labelcolor": INK_COLOUR,
    "ytick.labelcolor": INK_COLOUR,
}

MAX_WIDTH_INCHES = 10.0  #: inches, of the widest figure
BARS_ACROSS = 20  #: of one row of panels side by side
MAX_MINIATURES, BARS_IN_MINIATURE = 12, 66  #: of one row of small rolls
LINE_HEIGHT = 0.12  #: inches between the names of two notes, at least

MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11)
SHARP_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
FLAT_NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
ACCIDENTAL_SIGNS = {"#": r"$\,\sharp\,$", "b": r"$\flat$", "": ""}
WITH_FLATS = {5, 10, 3, 8, 1}  #: the major keys that are written with flats


save_figure = partial(figures.save_figure, style=PLOT_STYLE)  #: whole or not at all


def rolls_figure(rows: Mapping[str, Sequence[Melody]]) -> Figure:
    """Named rows of small piano rolls; of a long row, as many as can be told apart.

    Args:
        rows: name -> melodies.
    """
    longest = max(melody.num_bars for row in rows.values() for melody in row)
    most = max(map(len, rows.values())), MAX_MINIATURES, BARS_IN_MINIATURE // max(longest, 1)
    columns = max(min(most), 1)
    shown = [list(row)[:columns] for row in rows.values()]
    low, high = _range(melody for row in shown for melody in row)
    pitches = _pitches(low, high, height=0.8, key=None)
    with rc_context(PLOT_STYLE):
        size = min(0.6 + 0.5 * longest * columns, MAX_WIDTH_INCHES), 0.9 * len(shown) + 0.1
        figure = Figure(figsize=size, layout=_layout(0.04))
        grid = figure.subplots(len(shown), columns, squeeze=False, sharey=True)
        for panels, name, row, colour in zip(
            grid, rows, shown, _cycle(VOICE_COLOURS, len(shown)), strict=True
        ):
            for panel in panels[len(row) :]:
                panel.set_visible(False)
            for panel, melody in zip(panels, row, strict=False):
                draw_roll(panel, melody, colour, low=low, high=high, pitches=pitches)
                panel.set_xticks([])
            panels[0].set_ylabel(name, fontsize=9, parse_math=False)
    return figure


def blend_figure(steps: Sequence[Melody], *, names: tuple[str, str]) -> Figure:
    """The way from A to B: short melodies side by side, long ones below each other.

    Args:
        steps: A, what lies between at equal distances, B.
        names: of A and B.
    """
    num, longest = len(steps), max(melody.num_bars for melody in steps)
    rows = math.ceil(num / max(BARS_ACROSS // max(longest, 1), 1))
    columns = math.ceil(num / rows)
    height = max(2.5 / rows, 1.6 if columns > 1 else 0.85)
    low, high = _range(steps)
    pitches = _pitches(low, high, height=height, key=steps[0].key)
    length = max(map(len, steps))
    with rc_context(PLOT_STYLE):
        width = min(0.6 + 0.75 * longest * columns, MAX_WIDTH_INCHES)
        figure = Figure(figsize=(width, (height + 0.25) * rows + 0.3), layout=_layout(0.03))
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for panel in panels[num:]:
            panel.set_visible(False)
        across = (width - 0.5) / columns
        for i, (panel, melody) in enumerate(zip(panels, steps, strict=False)):
            share = i / max(num - 1, 1)
            draw_roll(panel, melody, BLEND_COLOURS(share), low=low, high=high, pitches=pitches)
            panel.set_xlim(0, length)
            title = f"{100 * share:.3g}%"
            if i in (0, num - 1):
                title = f"{'B' if i else 'A'}: {names[i > 0]}"
            title = "\n".join(textwrap.wrap(title, max(int(14 * across), 8), max_lines=3))
            text = dict(color=BLEND_COLOURS(share), va="bottom", linespacing=1.0, parse_math=False)
            panel.set_title(title, loc="left", pad=2, **text)
            _number_bars(panel, melody, across * len(melody) / length, last=i + columns >= num)
    return figure


def path_figure(curves: Mapping[str, Sequence[float]], *, ylabel: str) -> Figure:
    """Values on the way from A to B, at equal distances, as lines.

    Args:
        curves: name -> values, the first at A, the last at B.
        ylabel: what they measure.
    """
    with rc_context(PLOT_STYLE):
        figure = Figure(figsize=(4.2, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.grid(color=LINE_COLOUR, linewidth=0.6)
        axes.set_axisbelow(True)
        for (name, values), colour in zip(
            curves.items(), _cycle(VOICE_COLOURS, len(curves)), strict=True
        ):
            way = np.linspace(0, 100, len(values))
            (line,) = axes.plot(way, values, color=colour, linewidth=1.5, label=name, clip_on=False)
            if len(values) <= 21:
                line.set(marker="o", markersize=3.5)
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 25), ["A", "25%", "50%", "75%", "B"])
        axes.set_ylabel(ylabel)
        axes.set_ylim(bottom=min(0.0, *(min(values) for values in curves.values())))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=2, color=BAR_LINE_COLOUR)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(BAR_LINE_COLOUR)
        if len(curves) > 1:
            figure.legend(loc="outside upper left", ncols=len(curves), frameon=False)
    return figure


def draw_roll(
    panel: Axes, melody: Melody, colour: object, *, low: int, high: int, pitches: Mapping[int, str]
) -> None:
    """One piano roll between two MIDI numbers, with its bar lines.

    Args:
        panel: whose `sharey` panels are drawn with the same range and pitches.
        melody: what is drawn.
        colour: of its notes.
        low: MIDI number.
        high: MIDI number.
        pitches: MIDI number -> name, each with a thin line.
    """
    bar_lines = np.arange(0, len(melody) + 1, melody.meter.steps)
    panel.hlines(list(pitches), 0, len(melody), colors=LINE_COLOUR, linewidth=0.5, zorder=0.4)
    panel.vlines(
        bar_lines,
        low - 0.5,
        high + 0.5,
        colors=BAR_LINE_COLOUR,
        linewidth=0.6,
        zorder=0.5,
        clip_on=False,
    )
    notes = read_steps(melody.steps)
    corners = [
        [(left, pitch - 0.45), (right, pitch - 0.45), (right, pitch + 0.45), (left, pitch + 0.45)]
        for left, right, pitch in zip(notes.start, notes.end - 0.2, notes.pitch, strict=True)
    ]
    panel.add_collection(PolyCollection(corners, facecolors=[colour], linewidths=0, zorder=2))
    panel.set_xlim(0, len(melody))
    panel.set_ylim(low - 0.5, high + 0.5)
    panel.set_yticks(list(pitches), pitches.values())
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, pad=2, labelsize=7)


def _layout(pad: float) -> ConstrainedLayoutEngine:
    """Panels close to each other, with `pad` inches above and below."""
    return ConstrainedLayoutEngine(w_pad=0.03, h_pad=pad, wspace=0.02, hspace=0.02)


def _range(melodies: Iterable[Melody]) -> tuple[int, int]:
    """The lowest and the highest note, and a margin; at least an octave."""
    pitches = np.concatenate([melody.pitches for melody in melodies])
    if not len(pitches):
        return 60, 72
    low, high = int(pitches.min()) - 1, int(pitches.max()) + 1
    missing = max(12 - (high - low), 0)
    return low - missing // 2, high + (missing + 1) // 2


def _pitches(low: int, high: int, *, height: float, key: int | None) -> dict[int, str]:
    """The notes of a scale between two MIDI numbers, or as many as have room in so many inches."""
    major = 0 if key is None else key if key < 12 else (key - 9) % 12
    names = FLAT_NAMES if major in WITH_FLATS else SHARP_NAMES
    scale = {(major + step) % 12 for step in MAJOR_SCALE}
    shown: list[int] = []
    for classes in (scale, {0, 4, 7}, {0, 7}, {0}):
        shown = [pitch for pitch in range(low, high + 1) if pitch % 12 in classes]
        gap = min(np.diff(shown), default=12)
        if gap * height / (high - low + 1) >= LINE_HEIGHT:
            break
    parts = [(pitch, names[pitch % 12], pitch // 12 - 1) for pitch in shown]
    return {
        pitch: f"{name[0]}{ACCIDENTAL_SIGNS[name[1:]]}{octave}" for pitch, name, octave in parts
    }


def _number_bars(panel: Axes, melody: Melody, width: float, *, last: bool) -> None:
    """Numbers below the bars, or below every second, fourth ... where bars are narrow."""
    every = 1
    while every * width < 0.25 * melody.num_bars:
        every *= 2
    shown = range(0, melody.num_bars, every)
    panel.set_xticks([(i + 0.5) * melody.meter.steps for i in shown], [str(i + 1) for i in shown])
    panel.tick_params(labelbottom=last)


def _cycle(colours: Sequence[str], num: int) -> list[str]:
    return [colours[i % len(colours)] for i in range(num)]
