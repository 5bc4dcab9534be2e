"""What the encoder sees instead of the target: noise, masking, fewer positions, or just the target.

Every corruption is drawn anew at each step, on the device, for the whole batch at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ae_toolkit.contracts import Shape, Size, StepContext


class Identity:
    """The encoder sees the target itself."""

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def __call__(
        self, x: Tensor, y: Tensor, mask: Tensor | None, step: StepContext
    ) -> tuple[Tensor, Tensor]:
        return x, y


class Noise:
    """Adds Gaussian noise N(mean, std²) to the input (a denoising autoencoder, Vincent 2008).

    Args:
        std: of the noise, in units of prepared values.
        mean: of the noise.
        clip: cut the noisy input back to this range; None leaves it as it is.
    """

    def __init__(
        self, *, std: float = 0.5, mean: float = 0.0, clip: tuple[float, float] | None = (0.0, 1.0)
    ):
        if std < 0:
            raise ValueError(f"std is {std}, but a spread cannot be negative")
        self.std, self.mean, self.clip = std, mean, clip

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def __call__(
        self, x: Tensor, y: Tensor, mask: Tensor | None, step: StepContext
    ) -> tuple[Tensor, Tensor]:
        x = x + self.mean + self.std * step.randn(tuple(x.shape))
        return (x if self.clip is None else x.clamp(*self.clip)), y


class Masking:
    """Sets a random share of the input's elements to a constant.

    Args:
        share: of the elements that are hidden, in [0, 1].
        value: what stands in their place.
    """

    def __init__(self, *, share: float = 0.5, value: float = 0.0):
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}, but it must lie in [0, 1]")
        self.share, self.value = share, value

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def __call__(
        self, x: Tensor, y: Tensor, mask: Tensor | None, step: StepContext
    ) -> tuple[Tensor, Tensor]:
        hidden = step.rand(tuple(x.shape)) < self.share
        return torch.where(hidden, torch.as_tensor(self.value, dtype=x.dtype), x), y


class Downsample:
    """Shrinks every axis but the first by averaging: super-resolution learns to undo it.

    Args:
        factor: positions that become one; it must divide every axis.
    """

    def __init__(self, *, factor: Size = 2):
        self.factor = factor

    def out_shape(self, shape: Shape) -> Shape:
        if any(size % self.factor for size in shape[1:]) or len(shape) < 2:
            raise ValueError(f"factor {self.factor} does not divide every position axis of {shape}")
        return (shape[0], *(size // self.factor for size in shape[1:]))

    def __call__(
        self, x: Tensor, y: Tensor, mask: Tensor | None, step: StepContext
    ) -> tuple[Tensor, Tensor]:
        for axis in range(2, x.dim()):
            shape = (*x.shape[:axis], -1, self.factor, *x.shape[axis + 1 :])
            x = x.reshape(shape).mean(axis + 1)
        return x, y


class Binarise:
    """Draws each element from a Bernoulli with its value as probability, input and target alike.

    Drawn anew each time, this is the dynamic binarisation of Salakhutdinov and Murray (2008).
    """

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def __call__(
        self, x: Tensor, y: Tensor, mask: Tensor | None, step: StepContext
    ) -> tuple[Tensor, Tensor]:
        y = (step.rand(tuple(y.shape)) < y).to(y.dtype)
        return y, y
