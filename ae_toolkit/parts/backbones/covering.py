"""Convolutions whose kernel covers all of their input, done as the matrix products that they are.

The last layer of many convolutional encoders is one. On CPUs its gradients by the library (oneDNN
3.x) are many times slower than those of other convolutions of the same cost.

Axes: B examples, C channels, H and W positions, K kernel positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Overlap(NamedTuple):
    """Along one axis, what a kernel at its only place sees.

    Attributes:
        input: the positions of the input that it sees.
        kernel: the positions of the kernel that see them; the others see padding.
    """

    input: slice
    kernel: slice

    @classmethod
    def of(cls, num: int, *, kernel: int, stride: int, padding: int) -> Overlap | None:
        """None, where the kernel has more places than one, or sees padding alone."""
        room = num + 2 * padding - kernel
        if not 0 <= room < stride or kernel <= padding:
            return None
        seen = min(num, kernel - padding)
        return cls(slice(seen), slice(padding, padding + seen))


class FullKernelConv2d(nn.Conv2d):
    """A convolution that is a matrix product wherever its output has one position."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        overlaps = self._overlaps(input)
        if overlaps is None:
            return super()._conv_forward(input, weight, bias)
        (rows, kernel_rows), (columns, kernel_columns) = overlaps
        # Channels last, as they lie in memory: (B, C, H, W) and (C', C, K, K) to (…, K * K * C).
        seen = input[:, :, rows, columns].permute(0, 2, 3, 1).flatten(1)
        used = weight[:, :, kernel_rows, kernel_columns].permute(0, 2, 3, 1).flatten(1)
        return F.linear(seen, used, bias)[:, :, None, None]

    def _overlaps(self, input: Tensor) -> tuple[Overlap, Overlap] | None:
        plain = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        fits = input.dim() == 4 and input.shape[1] == self.in_channels
        if not plain or not fits or isinstance(self.padding, str):
            return None
        rows, columns = (
            Overlap.of(num, kernel=kernel, stride=stride, padding=padding)
            for num, kernel, stride, padding in zip(
                input.shape[2:], self.kernel_size, self.stride, self.padding, strict=True
            )
        )
        return (rows, columns) if rows and columns else None


def use_full_kernel(model: nn.Module) -> None:
    """Makes a `FullKernelConv2d` of every `Conv2d` in a model; its state stays as it is."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = FullKernelConv2d
