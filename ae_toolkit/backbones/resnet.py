"""Residual convolutional backbones, for planes of any size, with flat or spatial codes.

The planes are cut into patches by the first layer and put together from patches by the last: most
of the work happens on few positions with many channels. Sizes that do not divide are padded on the
way in and cropped on the way out.

Axes: B examples, N codes, P parameters per element, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ae_toolkit.backbones.conv import Entry
from ae_toolkit.backbones.layers import (
    ActivationName,
    FeedForward,
    group_norm,
    input_shape,
    make_activation,
    need_one_level,
    need_planes,
    one_hot,
    pad_to_multiple,
    planes,
)
from ae_toolkit.contracts import Shape


class ResNetEncoder(nn.Module):
    """Patches, then stages of residual blocks with a halving between stages.

    Args:
        widths: channels of the stages, from the input to the bottleneck.
        blocks: residual blocks of every stage, or of each.
        patch: edge of the patches that the first layer sees.
        activation: inside blocks.
        norm: whether blocks begin with a GroupNorm.
    """

    def __init__(
        self,
        *,
        in_shape: Shape,
        num_classes: int,
        cond_dim: int,
        widths: tuple[int, ...] = (32, 64),
        blocks: int | tuple[int, ...] = 2,
        patch: int = 2,
        activation: ActivationName = "silu",
        norm: bool = True,
    ):
        super().__init__()
        channels, height, width = need_planes(input_shape(in_shape, num_classes), "resnet")
        self.num_classes = num_classes
        self.factor = patch * 2 ** (len(widths) - 1)
        self.layers = nn.Sequential(nn.Conv2d(channels + cond_dim, widths[0], patch, patch))
        for i, num in enumerate(per_stage(blocks, widths)):
            if i:
                self.layers.append(nn.Conv2d(widths[i - 1], widths[i], 2, 2))
            self.layers.extend(Block(widths[i], activation, norm) for _ in range(num))
        self.layers.append(make_activation(activation))
        self.out_shapes: tuple[Shape, ...] = (
            (widths[-1], -(-height // self.factor), -(-width // self.factor)),
        )

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        x = one_hot(x, self.num_classes)
        x = torch.cat([x, planes(c, x.shape[2:])], 1)
        return (self.layers(pad_to_multiple(x, self.factor)),)


class ResNetDecoder(FeedForward):
    """The mirror of the encoder: stages of residual blocks with a doubling between, then patches.

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
        cond_dim: int,
        widths: tuple[int, ...] = (64, 32),
        blocks: int | tuple[int, ...] = 2,
        patch: int = 2,
        activation: ActivationName = "silu",
        norm: bool = True,
    ):
        super().__init__()
        params, channels = out_shape[0], need_planes(out_shape[1:], "resnet")[0]
        self.out_shape = out_shape
        factor = patch * 2 ** (len(widths) - 1)
        self.entry = Entry(
            need_one_level(z_shapes, "resnet"),
            cond_dim=cond_dim,
            width=widths[0],
            size=(-(-out_shape[2] // factor), -(-out_shape[3] // factor)),
        )
        self.layers = nn.Sequential()
        for i, num in enumerate(per_stage(blocks, widths)):
            if i:
                self.layers.append(nn.Conv2d(widths[i - 1], 4 * widths[i], 1))
                self.layers.append(nn.PixelShuffle(2))
            self.layers.extend(Block(widths[i], activation, norm) for _ in range(num))
        self.layers.append(make_activation(activation))
        self.layers.append(nn.Conv2d(widths[-1], params * channels * patch**2, 3, padding=1))
        self.layers.append(nn.PixelShuffle(patch))

    def params(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        out = self.layers(self.entry(z[0], c))[..., : self.out_shape[2], : self.out_shape[3]]
        return out.unflatten(1, self.out_shape[:2])


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
