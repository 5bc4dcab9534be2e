"""Pictures with known causes: a square, an ellipse or a heart of some size, turned and moved.

The causes are those of dSprites (Matthey et al. 2017), by which Higgins et al. (2017) and their
followers judge how well a code takes data apart. The pictures are drawn here, in seconds: grey,
with soft edges, and of any size.

Axes: N pictures, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ae_image.modality import Image
from ae_image.recipes import CAUSE_CLASSES
from ae_toolkit import Examples, UsageError
from ae_toolkit.data.examples import Split

SHAPE_PERIODS = (math.pi / 2, math.pi, 2 * math.pi)  #: radians after which a shape is itself again
LARGEST_RADIUS = 0.25  #: of the circle around a sprite, in sides of the picture
HEART_RADIUS = 1.79  #: of the circle around a heart whose square has corners at ±1

NUM_TRAIN, NUM_TEST = 50_000, 10_000  #: of 737,280 combinations
SUBSET_SEED = 2017
CHUNK_PICTURES = 100  #: pictures drawn at once: what they take stays in the cache


def sprites(*, modality: Image, split: Split) -> Examples:
    """50,000 + 10,000 drawn squares, ellipses and hearts, whose causes are their labels.

    Every picture is another combination of shape, scale (6 from one half to 1), rotation (40), x
    (32) and y (32). A rotation is a share of a whole turn for the heart, of half a turn for the
    ellipse and of a quarter for the square, after which they look the same.
    """
    if not isinstance(modality, Image):
        raise UsageError("data set 'sprites' holds pictures, which this data type does not read")
    order = torch.randperm(
        math.prod(CAUSE_CLASSES.values()), generator=torch.Generator().manual_seed(SUBSET_SEED)
    )
    chosen = order[:NUM_TRAIN] if split == "train" else order[NUM_TRAIN : NUM_TRAIN + NUM_TEST]
    found = torch.unravel_index(chosen, tuple(CAUSE_CLASSES.values()))
    labels = dict(zip(CAUSE_CLASSES, found, strict=True))
    channels, height, width = modality.shape
    y = draw_sprites(labels, height, width)[:, None].expand(-1, channels, -1, -1).contiguous()
    groups = [f"{split}/{i}" for i in range(len(y))]
    wanted = {name: column for name, column in labels.items() if name in modality.labels}
    return Examples(y, None, wanted, groups)


def draw_sprites(labels: dict[str, Tensor], height: int, width: int) -> Tensor:
    """The pictures `(N, H, W)` in uint8 that causes `(N,)` have, as `CAUSE_CLASSES` counts them."""
    causes = torch.stack([labels[name] for name in CAUSE_CLASSES], 1)
    y = torch.empty(len(causes), height, width, dtype=torch.uint8)
    for shape in range(CAUSE_CLASSES["shape"]):
        for index in (causes[:, 0] == shape).nonzero()[:, 0].split(CHUNK_PICTURES):
            y[index] = _draw(shape, causes[index], height, width)
    return y


def _draw(shape: int, causes: Tensor, height: int, width: int) -> Tensor:
    """Pictures `(N, H, W)` of one shape: a pixel is as bright as its covered share.

    That share is read off the distance of its middle from the outline, which is exact for an edge
    along the pixels.
    """
    scale, rotation, x, y = causes[:, 1:].T[:, :, None, None]
    radius = (
        LARGEST_RADIUS * min(height, width) * (0.5 + 0.5 * scale / (CAUSE_CLASSES["scale"] - 1))
    )
    room = 1 - 2 * LARGEST_RADIUS  # where a sprite's middle can be
    right = (
        torch.arange(width) + 0.5 - width * (LARGEST_RADIUS + room * x / (CAUSE_CLASSES["x"] - 1))
    )
    down = (torch.arange(height) + 0.5)[:, None]
    down = down - height * (LARGEST_RADIUS + room * y / (CAUSE_CLASSES["y"] - 1))
    angle = SHAPE_PERIODS[shape] * rotation / CAUSE_CLASSES["rotation"]
    u = (right * angle.cos() + down * angle.sin()) / radius
    v = (down * angle.cos() - right * angle.sin()) / radius
    outline = (_square, _ellipse, _heart)[shape](u, v)
    return (255 * (0.5 - radius * outline).clamp(0, 1)).round().byte()


def _square(u: Tensor, v: Tensor, *, half: float = math.sqrt(0.5)) -> Tensor:
    """The distance from a square's outline, below 0 inside; its corners are on the unit circle."""
    across, along = u.abs() - half, v.abs() - half
    return torch.hypot(across.relu(), along.relu()) + torch.maximum(across, along).clamp(max=0)


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    """The same of an ellipse of radii 1 and 1/2, to first order: its equation by its slope."""
    level = torch.hypot(u, 2 * v)
    return level * (level - 1) / torch.hypot(u, 4 * v).clamp(min=1e-6)


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """The same of a heart, a square that stands on its corner with a disc on each upper side."""
    a = HEART_RADIUS * (u - v) * math.sqrt(0.5) + 0.25
    b = HEART_RADIUS * (-u - v) * math.sqrt(0.5) + 0.25
    discs = torch.minimum(torch.hypot(a - 1, b), torch.hypot(a, b - 1)) - 1
    return torch.minimum(_square(a, b, half=1.0), discs) / HEART_RADIUS
