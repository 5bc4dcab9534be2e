"""What backbones of sequences share: values to vectors, and decoding one position after the other.

A sequence is `(T,)`, classes or real numbers, or `(T, F)` real numbers; it may be shorter than T,
and then a mask `(B, T)` says where it is real.

Axes: B examples, N codes, T positions, P parameters per position, W width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import Shape, StepContext, flatten
from ae_toolkit.randomness import draw_classes


class Values(nn.Module):
    """Values `(B, T)`, or real `(B, T, F)`, to vectors `(B, T, W)`.

    Args:
        shape: `(T,)` or `(T, F)`.
        num_classes: 0 for real numbers.
        width: W.
        start: whether there is one more class, which stands before the first value.
    """

    def __init__(self, shape: Shape, *, num_classes: int, width: int, start: bool = False):
        super().__init__()
        if len(shape) not in (1, 2) or (num_classes and len(shape) != 1):
            raise ValueError(
                f"sequences have shape (positions,), or (positions, numbers) without classes, not "
                f"{shape}"
            )
        self.num_classes, self.flat = num_classes, len(shape) == 1
        self.layer: nn.Module
        if num_classes:
            self.layer = nn.Embedding(num_classes + start, width)
        else:
            self.layer = nn.Linear(1 if self.flat else shape[1], width)

    def forward(self, x: Tensor) -> Tensor:
        if self.num_classes:
            return self.layer(x.long())
        return self.layer(x[..., None] if self.flat else x)


class Spread(nn.Module):
    """Codes and conditions to one vector per position, `(N, length, W)`.

    A flat code is spread by a linear map of its own for every position or, if `shared`, by one for
    all; a spatial code `(z_dim, L)` goes to its positions, each to `length / L` neighbours.

    Args:
        z_shapes: of the levels of the code; several are taken as one flat code.
        cond_dim: of the condition.
        width: W.
        length: positions.
        shared: see above.
    """

    def __init__(
        self, z_shapes: Sequence[Shape], *, cond_dim: int, width: int, length: int,
        shared: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.length, self.width, self.shared = length, width, shared
        self.spatial = len(z_shapes) == 1 and len(z_shapes[0]) == 2
        if self.spatial:
            if length % z_shapes[0][1]:
                raise ValueError(
                    f"the code has {z_shapes[0][1]} positions, which do not divide the decoder's "
                    f"{length}: give encoder and decoder the same patch"
                )
            self.layer = nn.Linear(z_shapes[0][0] + cond_dim, width)
        else:
            dim = sum(math.prod(shape) for shape in z_shapes)
            self.layer = nn.Linear(dim + cond_dim, width * (1 if shared else length))

    def forward(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        if self.spatial:
            vectors = self.layer(beside(z[0].transpose(1, 2), c))
            return vectors.repeat_interleave(self.length // vectors.shape[1], 1)
        vectors = self.layer(torch.cat([flatten(z), c], 1))
        if self.shared:
            return vectors[:, None].expand(-1, self.length, -1)
        return vectors.unflatten(1, (self.length, self.width))


def beside(vectors: Tensor, c: Tensor) -> Tensor:
    """Vectors `(N, T, W)`, each with the condition or code `(N, D)` at its end, `(N, T, W + D)`."""
    return torch.cat([vectors, c[:, None].expand(-1, vectors.shape[1], -1)], 2)


class Autoregressive(nn.Module, ABC):
    """A decoder that gives each position knowing those before it.

    It is trained by teacher forcing, with a share of its own draws in place of the target where
    `scheduled_sampling` says so (Bengio et al. 2015; the draws come from one parallel pass, as in
    Mihaylova and Martins 2019).

    Args:
        out_shape: `(P, T)`.
        num_classes: 0 for real numbers.
        scheduled_sampling: the share of own draws at the training's end; it rises from 0.
    """

    def __init__(self, *, out_shape: Shape, num_classes: int, scheduled_sampling: float):
        super().__init__()
        if len(out_shape) != 2:
            raise ValueError(
                f"autoregressive decoders give sequences of shape (positions,), not {out_shape[1:]}"
            )
        if not 0 <= scheduled_sampling <= 1:
            raise ValueError(f"scheduled_sampling is {scheduled_sampling}, not a share in [0, 1]")
        if scheduled_sampling and not num_classes:
            raise ValueError("scheduled_sampling needs classes, and these are real numbers")
        self.num_params, self.length = out_shape
        self.num_classes, self.scheduled_sampling = num_classes, scheduled_sampling

    @abstractmethod
    def teach(self, before: Tensor, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        """Values `(N, T)`, each the one before its position, to parameters `(N, P, T)`."""

    @abstractmethod
    def begin(self, z: tuple[Tensor, ...], c: Tensor) -> Any:
        """What is known before the first position."""

    @abstractmethod
    def advance(self, before: Tensor, state: Any, at: int) -> tuple[Tensor, Any]:
        """The value `(N,)` before position `at` to its parameters `(N, P)` and a new state."""

    def forward(
        self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None, *,
        target: Tensor, step: StepContext,
    ) -> Tensor:  # fmt: skip
        if self.training and self.scheduled_sampling:
            with torch.no_grad():
                logits = self.teach(self._shift(target), z, c)
                own = draw_classes(logits, step).to(target.dtype)
            share = self.scheduled_sampling * step.progress
            target = torch.where(step.rand(tuple(target.shape)) < share, own, target)
        return self.teach(self._shift(target), z, c)

    def generate(
        self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None, *,
        draw: Callable[[Tensor], Tensor],
    ) -> Tensor:  # fmt: skip
        state = self.begin(z, c)
        value = z[0].new_full((len(z[0]),), self.num_classes)
        length = self.length if mask is None else int(mask.sum(1).max())
        values = []
        for at in range(length):
            params, state = self.advance(value, state, at)
            value = draw(params[:, :, None])[:, 0]
            values.append(value)
        made = torch.stack(values, 1)
        return torch.cat([made, made.new_zeros(len(made), self.length - length)], 1)

    def _shift(self, target: Tensor) -> Tensor:
        """`(N, T)` one position later; what stands before the first is the class `num_classes`."""
        target = target.long() if self.num_classes else target
        first = target.new_full((len(target), 1), self.num_classes)
        return torch.cat([first, target[:, :-1]], 1)
