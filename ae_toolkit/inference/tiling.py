"""Inputs too large for the memory, in overlapping pieces.

Axes: B examples, C channels, then any number of position axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ae_toolkit.console import track
from ae_toolkit.version import former_names

TILE_SIZE = 512  #: positions along an axis that a piece answers for; a multiple of every stride
TILE_MARGIN = 64  #: positions that it sees on either side beyond those; likewise


def apply_tiled(
    run: Callable[[Tensor], Tensor], x: Tensor, *, margin: int = TILE_MARGIN, progress: bool = False
) -> Tensor:
    """`run(x)`, piece by piece where `x` is large: exact where `run` sees no farther than margin.

    Args:
        run: `(B, C, *positions)` to the same, or to a whole multiple of the positions.
        x: `(B, C, *positions)`.
        margin: overlap of the pieces.
        progress: show a bar where there are several pieces.
    """
    axes = [_tiles(size, margin) for size in x.shape[2:]]
    total = math.prod(map(len, axes))
    shown = progress and total > 1
    whole, scale = torch.empty(0), [1] * len(axes)
    for piece in track(product(*axes), "piece by piece", total=total, unit="pieces", shown=shown):
        y = run(x[_index([(cut.low, cut.high) for cut in piece], [1] * len(axes))])
        if whole.dim() == 1:  # the first piece says how large all of them are
            scale = [m // (cut.high - cut.low) for m, cut in zip(y.shape[2:], piece, strict=True)]
            sizes = [k * size for k, size in zip(scale, x.shape[2:], strict=True)]
            whole = y.new_empty(*y.shape[:2], *sizes)
        inner = _index([(cut.start - cut.low, cut.end - cut.low) for cut in piece], scale)
        whole[_index([(cut.start, cut.end) for cut in piece], scale)] = y[inner]
    return whole


class _Tile(NamedTuple):
    """A piece along one axis: it sees from low to high and answers for start to end."""

    low: int
    start: int
    end: int
    high: int


def _tiles(size: int, margin: int) -> list[_Tile]:
    if size <= TILE_SIZE + 2 * margin:
        return [_Tile(0, 0, size, size)]
    ends = [(start, min(start + TILE_SIZE, size)) for start in range(0, size, TILE_SIZE)]
    return [_Tile(max(a - margin, 0), a, b, min(b + margin, size)) for a, b in ends]


def _index(spans: Sequence[tuple[int, int]], scale: Sequence[int]) -> tuple[Any, ...]:
    """An index of spans along the position axes, each so many times as large."""
    return (..., *(slice(k * a, k * b) for (a, b), k in zip(spans, scale, strict=True)))


__getattr__ = former_names(__name__, {"in_pieces": "apply_tiled"})
