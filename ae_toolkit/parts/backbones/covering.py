"""Convolutions whose kernel covers all of their input, done as the matrix products that they are.

The last layer of many convolutional encoders is one. On CPUs its gradients by the library (oneDNN
3.x) are many times slower than those of other convolutions of the same cost.

Axes: B examples, C channels, H and W positions, K kernel positions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FullKernelConv2d(nn.Conv2d):
    """A convolution that is a matrix product wherever its output has one position."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._is_covered(input):
            return super()._conv_forward(input, weight, bias)
        assert not isinstance(self.padding, str)
        used, seen = weight, input
        for axis, kernel, padding in zip((2, 3), self.kernel_size, self.padding, strict=True):
            # At its only place a kernel sees so many positions; the others see padding.
            num = min(input.shape[axis], kernel - padding)
            seen, used = seen.narrow(axis, 0, num), used.narrow(axis, padding, num)
        # Channels last, as they lie in memory: (B, C, H, W) and (C', C, K, K) to (…, K * K * C).
        seen, used = (each.permute(0, 2, 3, 1).flatten(1) for each in (seen, used))
        return F.linear(seen, used, bias)[:, :, None, None]

    def _is_covered(self, input: Tensor) -> bool:
        """Whether the kernel has one place only, where it sees more than padding."""
        plain = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        fits = input.dim() == 4 and input.shape[1] == self.in_channels
        if not plain or not fits or isinstance(self.padding, str):
            return False
        sizes = zip(input.shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
        return all(
            0 <= num + 2 * padding - kernel < stride and kernel > padding
            for num, kernel, stride, padding in sizes
        )


def use_full_kernel(model: nn.Module) -> None:
    """Makes a `FullKernelConv2d` of every `Conv2d` in a model; its state stays as it is."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = FullKernelConv2d
