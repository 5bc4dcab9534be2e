"""Residual convolutional backbones, for planes of any size, with flat or spatial codes.

The planes are cut into patches by the first layer and put together from patches by the last: most
of the work happens on few positions with many channels. Sizes that do not divide are padded on the
way in and cropped on the way out. With several levels the pair is a U-Net (Ronneberger et al. 2015)
whose skips pass through the bottleneck; with spatial codes it works on planes of any size.

Their settings: `widths`, channels of the stages, from input to output; `blocks`, residual blocks
of every stage, or of each; `patch`, the edge of the patches; `activation` inside blocks; `norm`,
whether blocks begin with a GroupNorm; `levels`, how many of the encoder's stages, from the
coarsest, give features.

Axes: B examples, N codes, P parameters per element, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ae_toolkit.contracts import Shape, Size, Sizes
from ae_toolkit.parts.backbones.conv import Entry, coarsest, input_planes
from ae_toolkit.parts.backbones.layers import (
    ActivationName,
    FeedForward,
    group_norm,
    input_shape,
    make_activation,
    need_planes,
)


class ResNetEncoder(nn.Module):
    """Patches, then stages of residual blocks with a halving between stages."""

    any_size = True

    def __init__(
        self, *, in_shape: Shape, num_classes: int, cond_dim: int,
        widths: Sizes = (32, 64), blocks: int | tuple[int, ...] = 2, patch: Size = 2,
        activation: ActivationName = "silu", norm: bool = True, levels: Size = 1,
    ):  # fmt: skip
        super().__init__()
        channels, height, width = need_planes(input_shape(in_shape, num_classes), "resnet")
        if levels > len(widths):
            raise ValueError(f"levels is {levels}, but there are {len(widths)} stages")
        self.num_classes, self.factor = num_classes, patch * 2 ** (len(widths) - 1)
        self.layers = nn.Sequential(nn.Conv2d(channels + cond_dim, widths[0], patch, patch))
        ends = []
        for i, num in enumerate(per_stage(blocks, widths)):
            if i:
                self.layers.append(nn.Conv2d(widths[i - 1], widths[i], 2, 2))
            self.layers.extend(Block(widths[i], activation, norm) for _ in range(num))
            ends.append(len(self.layers) - 1)
        self.layers.append(make_activation(activation))
        self.ends = ends[-levels:]
        size = coarsest(height, width, self.factor)
        self.out_shapes: tuple[Shape, ...] = tuple(
            (widths[-1 - i], size[0] * 2**i, size[1] * 2**i) for i in range(levels)
        )

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        x = input_planes(x, c, self.num_classes, self.factor)
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
    """

    def __init__(
        self, *, z_shapes: Sequence[Shape], out_shape: Shape, num_classes: int, cond_dim: int,
        widths: Sizes = (64, 32), blocks: int | tuple[int, ...] = 2, patch: Size = 2,
        activation: ActivationName = "silu", norm: bool = True,
    ):  # fmt: skip
        super().__init__()
        params, channels = out_shape[0], need_planes(out_shape[1:], "resnet")[0]
        if len(z_shapes) > len(widths):
            raise ValueError(
                f"the code has {len(z_shapes)} levels, but there are {len(widths)} stages"
            )
        factor = patch * 2 ** (len(widths) - 1)
        self.entry = Entry(
            z_shapes[0], out_shape, cond_dim=cond_dim, width=widths[0], factor=factor
        )
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
            expected = (self.entry.size[0] * 2**i, self.entry.size[1] * 2**i)
            if shape[1:] != expected:
                raise ValueError(f"level {i} of the code has shape {shape}, not (z, *{expected})")
            self.joins.append(nn.Conv2d(shape[0], width, 1))

    def params(self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None) -> Tensor:
        x = self.entry(z[0], c)
        joins = dict(zip(self.starts[1:], zip(self.joins, z[1:], strict=True), strict=False))
        for i, layer in enumerate(self.layers):
            if i in joins:
                join, level = joins[i]
                x = x + join(level)
            x = layer(x)
        return self.entry.finish(x, z[0])


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
