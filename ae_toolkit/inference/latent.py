"""Walks through latent space: grids, interpolations, traversals. Flat codes `(D,)` in, rows out.

Codes of several levels are flattened by `Model.encode`, so that everything here sees one vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ae_toolkit.errors import UsageError


def quantiles(num: int, *, spread: float = 1.0) -> Tensor:
    """`(num,)` standard normal quantiles, evenly spaced in probability, as in VAE manifold figures.

    Kingma and Welling (2014), appendix A.

    Args:
        num: how many.
        spread: multiplies them; beyond 1 the walk leaves the prior's habitual region.
    """
    share = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    return (spread * torch.special.ndtri(share)).float()


def lattice(num: int, *, across: Tensor, down: Tensor, spread: float = 1.0) -> Tensor:
    """A square `(num, num, D)` of Gaussian quantiles; rows go along `down`, columns `across`."""
    steps = quantiles(num, spread=spread)
    return steps[:, None, None] * down + steps[None, :, None] * across


def axes(dim: int, first: int, second: int) -> tuple[Tensor, Tensor]:
    """Two unit vectors `(D,)`.

    Raises:
        UsageError: the code has no such axes.
    """
    if first == second or not all(0 <= axis < dim for axis in (first, second)):
        raise UsageError(f"axes {first} and {second}: choose two different ones of 0 to {dim - 1}")
    eye = torch.eye(dim)
    return eye[first], eye[second]


def plane(a: Tensor, b: Tensor, c: Tensor, num: int, *, margin: int = 0) -> Tensor:
    """The plane through three codes, `(num, num, D)`: a top left, b top right, c bottom left.

    Args:
        a: `(D,)`, as are b and c.
        b: the code at the top right.
        c: the code at the bottom left.
        num: codes per side.
        margin: by how many codes the square reaches beyond the three, on every side.
    """
    steps = (torch.arange(num) - margin) / (num - 1 - 2 * margin)
    return a + steps[:, None, None] * (c - a) + steps[None, :, None] * (b - a)


def lerp(a: Tensor, b: Tensor, num: int) -> Tensor:
    """`(num, D)` codes on the straight line from a to b, both ends included."""
    return torch.lerp(a, b, torch.linspace(0, 1, num)[:, None])


def slerp(a: Tensor, b: Tensor, num: int) -> Tensor:
    """`(num, D)` codes on the great arc from a to b, lengths interpolated linearly.

    Shoemake (1985); White (2016). Where the directions coincide it is `lerp`; where they are
    opposite the arc is not defined, and the straight line is taken too.
    """
    unit_a, unit_b = (v / v.norm().clamp(min=1e-12) for v in (a, b))
    angle = torch.atan2((unit_a - unit_b).norm(), (unit_a + unit_b).norm()) * 2
    if angle < 1e-4 or torch.pi - angle < 1e-4:
        return lerp(a, b, num)
    share = torch.linspace(0, 1, num)[:, None]
    arc = (
        torch.sin((1 - share) * angle) * unit_a + torch.sin(share * angle) * unit_b
    ) / angle.sin()
    return arc * torch.lerp(a.norm(), b.norm(), share)
