"""Figures of melodies: piano rolls, blends, and paths between two."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from ae_music.figures import blend_figure, path_figure, rolls_figure, save_figure
from ae_music.grid import Melody
from tunes import bundled

from ae_toolkit import UsageError
from ae_toolkit.figures import draw_rows


def silence(num_bars: int) -> Melody:
    return Melody(np.zeros(16 * num_bars, np.uint8), np.zeros(16 * num_bars, np.uint8))


@pytest.mark.parametrize(("num_bars", "shape"), [(2, (1, 9)), (4, (2, 5)), (16, (9, 1))])
def test_a_blend_is_readable(num_bars: int, shape: tuple[int, int]) -> None:
    a, b = (bundled(name).padded(16 * num_bars) for name in ("salamanca-reel", "drowsy-maggie"))
    steps = [a, *[a.transposed(i) for i in range(1, 8)], b]
    figure = blend_figure(steps, names=("The Salamanca Reel", "Drowsy $Maggie, at some length"))
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 9
    grid = figure.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == shape

    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles[0].startswith("A: The") and titles[8].startswith("B: Drowsy")
    assert titles[1:8] == ["12.5%", "25%", "37.5%", "50%", "62.5%", "75%", "87.5%"]
    colours = [tuple(axes.collections[-1].get_facecolor()[0]) for axes in panels]
    assert len(set(colours)) == 9

    # No text lies on another.
    down = [panels[0].transData.transform((0, y))[1] for y in panels[0].get_yticks()]
    assert len(down) >= 2 and np.diff(down).min() / figure.dpi > 7 / 72, "names are 7 points high"
    numbers = [label.get_window_extent() for label in panels[-1].get_xticklabels()]
    assert numbers and all(left.x1 < right.x0 for left, right in pairwise(numbers))
    boxes = [axes._left_title.get_window_extent() for axes in panels]
    assert not any(left.overlaps(right) for left, right in pairwise(boxes)), boxes


def test_a_blend_of_unlike_lengths_keeps_one_scale() -> None:
    figure = blend_figure([silence(3), silence(5), silence(8)], names=("short", "long"))
    panels = figure.axes[:3]
    assert {axes.get_xlim() for axes in panels} == {(0, 128)}
    assert [len(axes.get_xticks()) for axes in panels] == [3, 5, 8]


def test_rolls_are_as_many_as_can_be_told_apart() -> None:
    short, long = bundled("garryowen").bars(1, 2), bundled("rakes-of-mallow").bars(1, 16)
    for melody, shown in ((short, 10), (long, 4)):
        figure = rolls_figure({"original": 10 * [melody], "sample": [melody, silence(1)], "": []})
        visible = [axes for axes in figure.axes if axes.get_visible()]
        assert len(visible) == shown + 2
        assert figure.axes[0].get_ylabel() == "original"
        assert len({axes.get_ylim() for axes in visible}) == 1


def test_what_has_no_notes_is_drawn_too(tmp_path: Path) -> None:
    save_figure(rolls_figure({"sample": [silence(2)]}), tmp_path / "rolls.svg")
    assert (tmp_path / "rolls.svg").stat().st_size
    save_figure(blend_figure([silence(2)] * 3, names=("a", "b")), tmp_path / "blend.pdf")


def test_a_path_begins_at_a_and_ends_at_b(tmp_path: Path) -> None:
    figure = path_figure({"model": [0, 0.2, 0.6], "mix": [0, 0.3, 0.6]}, ylabel="distance to A")
    save_figure(figure, tmp_path / "path.png")
    (axes,) = figure.axes
    assert [line.get_xdata().tolist() for line in axes.lines] == 2 * [[0, 50, 100]]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn == {"model": [0, 0.2, 0.6], "mix": [0, 0.3, 0.6]}
    ticks = dict(zip(axes.get_xticks().tolist(), axes.get_xticklabels(), strict=True))
    assert (ticks[0].get_text(), ticks[100].get_text()) == ("A", "B")
    assert axes.get_ylabel() == "distance to A"
    assert axes.get_ylim()[0] == 0


def test_figures_know_their_endings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.png"):
        save_figure(path_figure({"x": [0, 1]}, ylabel="y"), tmp_path / "figure.mp3")
    assert not list(tmp_path.iterdir())


def test_names_in_any_script_are_drawn_without_a_warning(tmp_path: Path) -> None:
    named = rolls_figure({"主旋律 メロディー": [silence(2)]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(named, tmp_path / "rolls.png")
        draw_rows({"主旋律": [torch.zeros(1, 8)]}, tmp_path / "rows.png")
