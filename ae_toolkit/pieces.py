"""Inputs too large for the memory, in overlapping pieces.

Axes: B examples, C channels, then any number of position axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

PIECE = 512  #: positions along an axis that a piece answers for; a multiple of every stride
MARGIN = 64  #: positions that it sees on either side beyond those; likewise


def in_pieces(
    run: Callable[[Tensor], Tensor], x: Tensor, *, margin: int = MARGIN, progress: bool = False
) -> Tensor:
    """`run(x)`, piece by piece where `x` is large: exact where `run` sees no farther than margin.

    Args:
        run: `(B, C, *positions)` to the same, or to a whole multiple of the positions.
        x: `(B, C, *positions)`.
        margin: overlap of the pieces.
        progress: show a bar where there are several pieces.
    """

    def along(axis: int, x: Tensor) -> Tensor:
        if axis == x.dim():
            y = run(x)
            bar.update()
            return y
        size, parts = x.shape[axis], []
        if not _is_cut(size, margin):
            return along(axis + 1, x)
        for start in range(0, size, PIECE):
            end = min(start + PIECE, size)
            low, high = max(start - margin, 0), min(end + margin, size)
            y = along(axis + 1, x.narrow(axis, low, high - low))
            scale = y.shape[axis] // (high - low)
            parts.append(y.narrow(axis, scale * (start - low), scale * (end - start)))
        return torch.cat(parts, axis)

    total = math.prod(-(-n // PIECE) if _is_cut(n, margin) else 1 for n in x.shape[2:])
    off = None if progress and total > 1 else True
    with tqdm(total=total, unit=" pieces", disable=off, leave=False) as bar:
        return along(2, x)


def _is_cut(size: int, margin: int) -> bool:
    return size > PIECE + 2 * margin
