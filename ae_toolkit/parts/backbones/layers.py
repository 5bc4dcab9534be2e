"""The small pieces that families of backbones share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ae_toolkit.contracts import Shape, StepContext

ActivationName = Literal["relu", "silu", "gelu", "elu", "tanh"]

_ACTIVATION_LAYERS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}


class FeedForward(nn.Module, ABC):
    """A decoder that gives every parameter at once: it is its `params`, in training and after."""

    @abstractmethod
    def params(self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None) -> Tensor:
        """Codes `(N, *z_shapes[i])` and conditions `(N, cond_dim)` to `(N, P, *shape)`."""

    def forward(
        self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None, *,
        target: Tensor, step: StepContext,
    ) -> Tensor:  # fmt: skip
        return self.params(z, c, mask)

    def generate(
        self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None, *,
        draw: Callable[[Tensor], Tensor],
    ) -> Tensor:  # fmt: skip
        return draw(self.params(z, c, mask))


def make_activation(name: ActivationName) -> nn.Module:
    return _ACTIVATION_LAYERS[name]()


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm, about eight channels a group: ranks and evaluation agree, unlike BatchNorm."""
    return nn.GroupNorm(math.gcd(channels, max(channels // 8, 1)), channels)


def one_hot(x: Tensor, num_classes: int) -> Tensor:
    """`(B, *shape)` class indices to `(B, num_classes, *shape)`; real numbers pass unchanged."""
    if not num_classes:
        return x
    return F.one_hot(x.long(), num_classes).movedim(-1, 1).float()


def input_shape(shape: Shape, num_classes: int) -> Shape:
    """The shape that `one_hot` gives."""
    return (num_classes, *shape) if num_classes else shape


def planes(c: Tensor, size: Sequence[int]) -> Tensor:
    """A condition `(B, cond_dim)` as constant planes `(B, cond_dim, *size)`."""
    return c.reshape(*c.shape, *(1 for _ in size)).expand(-1, -1, *size)


def need_planes(shape: Shape, family: str) -> tuple[int, int, int]:
    """Returns `(C, H, W)`, or says that the family does not fit the data."""
    if len(shape) != 3:
        raise ValueError(f"{family} works on (channels, height, width), not on shape {shape}")
    return shape[0], shape[1], shape[2]
