"""Plain strided convolutions, the autoencoder of the textbooks, for planes of any size.

Every width halves the planes; sizes that do not divide are padded on the way in and cropped on the
way out. Codes may be flat or spatial.

Axes: B examples, N codes, P parameters per element, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import Shape, Sizes
from ae_toolkit.parts.backbones.layers import (
    ActivationName,
    FeedForward,
    input_shape,
    make_activation,
    need_one_level,
    need_planes,
    one_hot,
    pad_to_multiple,
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
        self,
        *,
        in_shape: Shape,
        num_classes: int,
        cond_dim: int,
        widths: Sizes = (32, 64),
        activation: ActivationName = "relu",
    ):
        super().__init__()
        channels, height, width = need_planes(input_shape(in_shape, num_classes), "conv")
        self.num_classes = num_classes
        self.factor = 2 ** len(widths)
        self.layers = nn.Sequential()
        for before, after in pairwise((channels + cond_dim, *widths)):
            self.layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            self.layers.append(make_activation(activation))
        self.out_shapes: tuple[Shape, ...] = (
            (widths[-1], -(-height // self.factor), -(-width // self.factor)),
        )

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        x = one_hot(x, self.num_classes)
        x = torch.cat([x, planes(c, x.shape[2:])], 1)
        return (self.layers(pad_to_multiple(x, self.factor)),)


class ConvDecoder(FeedForward):
    """The mirror of the encoder: transposed 4x4 convolutions of stride 2, one per width.

    Args:
        widths: channels, from the bottleneck to the output.
        activation: after each layer but the last.
    """

    def __init__(
        self,
        *,
        z_shapes: Sequence[Shape],
        out_shape: Shape,
        num_classes: int,
        cond_dim: int,
        widths: Sizes = (64, 32),
        activation: ActivationName = "relu",
    ):
        super().__init__()
        params, channels = out_shape[0], need_planes(out_shape[1:], "conv")[0]
        self.out_shape = out_shape
        factor = 2 ** len(widths)
        self.entry = Entry(
            need_one_level(z_shapes, "conv"),
            cond_dim=cond_dim,
            width=widths[0],
            size=(-(-out_shape[2] // factor), -(-out_shape[3] // factor)),
        )
        self.any_size = self.entry.spatial
        self.layers = nn.Sequential(make_activation(activation))
        for before, after in pairwise(widths):
            self.layers.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1))
            self.layers.append(make_activation(activation))
        self.layers.append(nn.ConvTranspose2d(widths[-1], params * channels, 4, 2, padding=1))

    def params(self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None) -> Tensor:
        out = self.layers(self.entry(z[0], c))
        return self.entry.finish(out, z[0], self.out_shape)


class Entry(nn.Module):
    """A code, flat or spatial, and the condition to the first planes of a decoder.

    Args:
        z_shape: of one level.
        cond_dim: of the condition.
        width: channels of the planes.
        size: their height and width; a spatial code must have it.
    """

    def __init__(self, z_shape: Shape, *, cond_dim: int, width: int, size: tuple[int, int]):
        super().__init__()
        self.spatial = len(z_shape) == 3
        if self.spatial and z_shape[1:] != size:
            raise ValueError(
                f"the code has {z_shape[1]}x{z_shape[2]} positions, but this decoder starts from "
                f"{size[0]}x{size[1]}: give encoder and decoder as many widths"
            )
        self.planes = (width, *size)
        self.layer: nn.Module
        if self.spatial:
            self.layer = nn.Conv2d(z_shape[0] + cond_dim, width, 1)
        else:
            self.layer = nn.Linear(z_shape[0] + cond_dim, width * size[0] * size[1])

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """`(N, *z_shape)` and `(N, cond_dim)` to `(N, width, *size)`."""
        if self.spatial:
            return self.layer(torch.cat([z, planes(c, z.shape[2:])], 1))
        return self.layer(torch.cat([z, c], 1)).unflatten(1, self.planes)

    def finish(self, planes: Tensor, z: Tensor, shape: Shape) -> Tensor:
        """A decoder's last planes `(N, P·C, H', W')` to `(N, *shape)`, shape being `(P, C, H, W)`.

        Codes of other positions than the trained ones give all of their planes, uncut.
        """
        if not self.spatial or tuple(z.shape[2:]) == self.planes[1:]:
            planes = planes[..., : shape[2], : shape[3]]
        return planes.reshape(-1, *shape[:2], *planes.shape[2:])
