"""Residual convolutional backbones, for planes of any size, with flat or spatial codes.

The planes are cut into patches by the first layer and put together from patches by the last: most
of the work happens on few positions with many channels. Sizes that do not divide are padded on the
way in and cropped on the way out. With several levels the pair is a U-Net (Ronneberger et al. 2015)
whose skips pass through the bottleneck; with spatial codes it works on planes of any size.

Axes: B examples, N codes, P parameters per element, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import Shape, Size, Sizes
from ae_toolkit.parts.backbones.conv import Entry
from ae_toolkit.parts.backbones.layers import (
    ActivationName,
    FeedForward,
    group_norm,
    input_shape,
    make_activation,
    need_planes,
    one_hot,
    pad_to_multiple,
    planes,
)


class ResNetEncoder(nn.Module):
    """Patches, then stages of residual blocks with a halving between stages.

    Args:
        widths: channels of the stages, from the input to the bottleneck.
        blocks: residual blocks of every stage, or of each.
        patch: edge of the patches that the first layer sees.
        activation: inside blocks.
        norm: whether blocks begin with a GroupNorm.
        levels: how many of the stages, from the coarsest, give features.
    """

    any_size = True

    def __init__(
        self,
        *,
        in_shape: Shape,
        num_classes: int,
        cond_dim: int,
        widths: Sizes = (32, 64),
        blocks: int | tuple[int, ...] = 2,
        patch: Size = 2,
        activation: ActivationName = "silu",
        norm: bool = True,
        levels: Size = 1,
    ):
        super().__init__()
        channels, height, width = need_planes(input_shape(in_shape, num_classes), "resnet")
        if not 1 <= levels <= len(widths):
            raise ValueError(f"levels is {levels}, but there are {len(widths)} stages")
        self.num_classes = num_classes
        self.factor = patch * 2 ** (len(widths) - 1)
        self.layers = nn.Sequential(nn.Conv2d(channels + cond_dim, widths[0], patch, patch))
        ends = []
        for i, num in enumerate(per_stage(blocks, widths)):
            if i:
                self.layers.append(nn.Conv2d(widths[i - 1], widths[i], 2, 2))
            self.layers.extend(Block(widths[i], activation, norm) for _ in range(num))
            ends.append(len(self.layers) - 1)
        self.layers.append(make_activation(activation))
        self.ends = ends[-levels:]
        coarsest = -(-height // self.factor), -(-width // self.factor)
        self.out_shapes: tuple[Shape, ...] = tuple(
            (widths[-1 - i], coarsest[0] * 2**i, coarsest[1] * 2**i) for i in range(levels)
        )

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        x = one_hot(x, self.num_classes)
        x = pad_to_multiple(torch.cat([x, planes(c, x.shape[2:])], 1), self.factor)
        *layers, activation = self.layers
        features: list[Tensor] = []
        for i, layer in enumerate(layers):
            x = layer(x)
            if i in self.ends:
                features.insert(0, activation(x))
        return tuple(features)


class ResNetDecoder(FeedForward):
    """The mirror of the encoder: stages of residual blocks with a doubling between, then patches.

    A code of several levels, all spatial, enters stage by stage.

    Args:
        widths: channels of the stages, from the bottleneck to the output.
        blocks: residual blocks of every stage, or of each.
        patch: edge of the patches that the last layer writes.
        activation: inside blocks.
        norm: whether blocks begin with a GroupNorm.
    """

    def __init__(
        self,
        *,
        z_shapes: Sequence[Shape],
        out_shape: Shape,
        num_classes: int,
        cond_dim: int,
        widths: Sizes = (64, 32),
        blocks: int | tuple[int, ...] = 2,
        patch: Size = 2,
        activation: ActivationName = "silu",
        norm: bool = True,
    ):
        super().__init__()
        params, channels = out_shape[0], need_planes(out_shape[1:], "resnet")[0]
        self.out_shape = out_shape
        factor = patch * 2 ** (len(widths) - 1)
        size = -(-out_shape[2] // factor), -(-out_shape[3] // factor)
        self.entry = Entry(z_shapes[0], cond_dim=cond_dim, width=widths[0], size=size)
        self.any_size = self.entry.spatial
        self.layers = nn.Sequential()
        self.starts = []
        for i, num in enumerate(per_stage(blocks, widths)):
            if i:
                self.layers.append(nn.Conv2d(widths[i - 1], 4 * widths[i], 1))
                self.layers.append(nn.PixelShuffle(2))
            self.starts.append(len(self.layers))
            self.layers.extend(Block(widths[i], activation, norm) for _ in range(num))
        self.layers.append(make_activation(activation))
        self.layers.append(nn.Conv2d(widths[-1], params * channels * patch**2, 3, padding=1))
        self.layers.append(nn.PixelShuffle(patch))
        self.joins = nn.ModuleList()
        for i, (shape, width) in enumerate(zip(z_shapes[1:], widths[1:], strict=False), start=1):
            expected = (size[0] * 2**i, size[1] * 2**i)
            if shape[1:] != expected:
                raise ValueError(f"level {i} of the code has shape {shape}, not (z, *{expected})")
            self.joins.append(nn.Conv2d(shape[0], width, 1))
        if len(z_shapes) > len(widths):
            raise ValueError(
                f"the code has {len(z_shapes)} levels, but there are {len(widths)} stages"
            )

    def params(self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None) -> Tensor:
        x = self.entry(z[0], c)
        joins = dict(zip(self.starts[1:], zip(self.joins, z[1:], strict=True), strict=False))
        for i, layer in enumerate(self.layers):
            if i in joins:
                join, level = joins[i]
                x = x + join(level)
            x = layer(x)
        return self.entry.finish(x, z[0], self.out_shape)


class Block(nn.Module):
    """`x + conv(act(conv(act(norm(x)))))`, 3x3 each; it starts small, near the identity."""

    def __init__(self, width: int, name: ActivationName, norm: bool):
        super().__init__()
        last = nn.Conv2d(width, width, 3, padding=1)
        last.weight.data.mul_(0.1)
        self.layers = nn.Sequential(
            group_norm(width) if norm else nn.Identity(),
            make_activation(name),
            nn.Conv2d(width, width, 3, padding=1),
            make_activation(name),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def per_stage(blocks: int | tuple[int, ...], widths: Sequence[int]) -> tuple[int, ...]:
    """How many blocks each stage has."""
    each = (blocks,) * len(widths) if isinstance(blocks, int) else blocks
    if len(each) != len(widths):
        raise ValueError(f"blocks has {len(each)} stages, but widths has {len(widths)}")
    return each
