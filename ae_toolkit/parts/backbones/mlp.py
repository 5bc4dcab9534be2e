"""Dense backbones: for any shape, with codes flattened.

Their settings: `hidden`, the widths, from input to output; `activation` between layers; `dropout`,
the share of hidden units that are dropped in training.

Axes: B examples, N codes, P parameters per element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import Shape, Size
from ae_toolkit.parts.backbones.layers import (
    ActivationName,
    FeedForward,
    input_shape,
    make_activation,
    one_hot,
)


class MLPEncoder(nn.Module):
    """Flattens, then linear layers with an activation after each."""

    def __init__(
        self, *, in_shape: Shape, num_classes: int, cond_dim: int,
        hidden: tuple[Size, ...] = (512, 256), activation: ActivationName = "relu",
        dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.num_classes = num_classes
        width = math.prod(input_shape(in_shape, num_classes)) + cond_dim
        self.layers = dense((width, *hidden), activation, dropout)
        self.out_shapes: tuple[Shape, ...] = ((hidden[-1] if hidden else width,),)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        return (self.layers(torch.cat([one_hot(x, self.num_classes).flatten(1), c], 1)),)


class MLPDecoder(FeedForward):
    """Linear layers from the flattened code to every parameter at once."""

    def __init__(
        self, *, z_shapes: Sequence[Shape], out_shape: Shape, num_classes: int, cond_dim: int,
        hidden: tuple[Size, ...] = (256, 512), activation: ActivationName = "relu",
        dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        width = sum(math.prod(shape) for shape in z_shapes) + cond_dim
        self.layers = dense((width, *hidden), activation, dropout)
        self.head = nn.Linear(hidden[-1] if hidden else width, math.prod(out_shape))
        self.out_shape = out_shape

    def params(self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None) -> Tensor:
        flat = torch.cat([*(level.flatten(1) for level in z), c], 1)
        return self.head(self.layers(flat)).unflatten(1, self.out_shape)


def dense(widths: Sequence[int], name: ActivationName, dropout: float) -> nn.Sequential:
    """Linear layers through `widths`, each followed by its activation."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), make_activation(name)]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)
