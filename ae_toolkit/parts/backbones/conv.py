"""Plain strided convolutions, the autoencoder of the textbooks, for planes of any size.

Every width halves the planes; sizes that do not divide are padded on the way in and cropped on the
way out. Codes may be flat or spatial.

Axes: B examples, N codes, P parameters per element, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_toolkit.contracts import Shape, Sizes
from ae_toolkit.parts.backbones.layers import (
    ActivationName,
    FeedForward,
    input_shape,
    make_activation,
    need_planes,
    one_hot,
    planes,
)


class ConvEncoder(nn.Module):
    """4x4 convolutions of stride 2, one per width.

    Args:
        widths: channels, from the input to the bottleneck.
        activation: after each convolution.
    """

    any_size = True

    def __init__(
        self, *, in_shape: Shape, num_classes: int, cond_dim: int,
        widths: Sizes = (32, 64), activation: ActivationName = "relu",
    ):  # fmt: skip
        super().__init__()
        channels, height, width = need_planes(input_shape(in_shape, num_classes), "conv")
        self.num_classes, self.factor = num_classes, 2 ** len(widths)
        self.layers = nn.Sequential()
        for before, after in pairwise((channels + cond_dim, *widths)):
            self.layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            self.layers.append(make_activation(activation))
        size = coarsest(height, width, self.factor)
        self.out_shapes: tuple[Shape, ...] = ((widths[-1], *size),)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        return (self.layers(input_planes(x, c, self.num_classes, self.factor)),)


class ConvDecoder(FeedForward):
    """The mirror of the encoder: transposed 4x4 convolutions of stride 2, one per width.

    Args:
        widths: channels, from the bottleneck to the output.
        activation: after each layer but the last.
    """

    def __init__(
        self, *, z_shapes: Sequence[Shape], out_shape: Shape, num_classes: int, cond_dim: int,
        widths: Sizes = (64, 32), activation: ActivationName = "relu",
    ):  # fmt: skip
        super().__init__()
        params, channels = out_shape[0], need_planes(out_shape[1:], "conv")[0]
        if len(z_shapes) != 1:
            raise ValueError(f"conv takes codes of one level, not of {len(z_shapes)}")
        self.entry = Entry(
            z_shapes[0], out_shape, cond_dim=cond_dim, width=widths[0], factor=2 ** len(widths)
        )
        self.any_size = self.entry.spatial
        self.layers = nn.Sequential(make_activation(activation))
        for before, after in pairwise((*widths, params * channels)):
            self.layers.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1))
            self.layers.append(make_activation(activation))
        del self.layers[-1]

    def params(self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None) -> Tensor:
        return self.entry.finish(self.layers(self.entry(z[0], c)), z[0])


def coarsest(height: int, width: int, factor: int) -> tuple[int, int]:
    """The size of planes that are `factor` times as coarse, rounded up."""
    return -(-height // factor), -(-width // factor)


def input_planes(x: Tensor, c: Tensor, num_classes: int, factor: int) -> Tensor:
    """Examples `(B, *in_shape)` and conditions `(B, cond_dim)` as planes `(B, C, H, W)`.

    Zeros are added, below and to the right, until H and W are multiples of `factor`.
    """
    x = one_hot(x, num_classes)
    height, width = x.shape[2:]
    x = torch.cat([x, planes(c, x.shape[2:])], 1)
    return F.pad(x, (0, -width % factor, 0, -height % factor))


class Entry(nn.Module):
    """A code, flat or spatial, and the condition to the first planes of a decoder.

    Args:
        z_shape: of one level; if it is spatial it must have the positions of the first planes.
        out_shape: `(P, C, H, W)` that the decoder gives.
        cond_dim: of the condition.
        width: channels of the planes.
        factor: how much finer the last planes are than the first.
    """

    def __init__(
        self, z_shape: Shape, out_shape: Shape, *, cond_dim: int, width: int, factor: int
    ):  # fmt: skip
        super().__init__()
        self.out_shape, self.size = out_shape, coarsest(out_shape[2], out_shape[3], factor)
        self.width, self.spatial = width, len(z_shape) == 3
        if self.spatial and z_shape[1:] != self.size:
            raise ValueError(
                f"the code has {z_shape[1]}x{z_shape[2]} positions, but this decoder starts from "
                f"{self.size[0]}x{self.size[1]}: give encoder and decoder as many widths"
            )
        self.layer: nn.Module
        if self.spatial:
            self.layer = nn.Conv2d(z_shape[0] + cond_dim, width, 1)
        else:
            self.layer = nn.Linear(z_shape[0] + cond_dim, width * self.size[0] * self.size[1])

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """`(N, *z_shape)` and `(N, cond_dim)` to `(N, width, *size)`."""
        if self.spatial:
            return self.layer(torch.cat([z, planes(c, z.shape[2:])], 1))
        return self.layer(torch.cat([z, c], 1)).unflatten(1, (self.width, *self.size))

    def finish(self, last: Tensor, z: Tensor) -> Tensor:
        """A decoder's last planes `(N, P·C, H', W')` to `(N, *out_shape)`.

        Codes of other positions than the trained ones give all of their planes, uncut.
        """
        params, channels, height, width = self.out_shape
        if not self.spatial or tuple(z.shape[2:]) == self.size:
            last = last[..., :height, :width]
        return last.unflatten(1, (params, channels))
