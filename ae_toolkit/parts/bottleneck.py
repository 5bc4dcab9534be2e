"""Codes, and what they cost.

Axes: B examples, K posterior samples, N = K·B (sample-major), D code dimensions over all levels.
A level is flat `(z_dim,)`, or spatial `(z_dim, *positions)`, where the head is a 1x1 convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import (
    Code,
    Posterior,
    Prior,
    Shape,
    Size,
    StepContext,
    flatten,
    repeat,
    unflatten,
)

PriorFactory = Callable[..., Prior]


class Deterministic(nn.Module):
    """One code per example and no rate: a plain autoencoder, or a sparse one with `l1`.

    Args:
        z_dim: numbers per code (per position, if spatial), for every level or for each.
        spatial: keep the positions of the features instead of flattening them.
        l1: the weight of Σ|z|, which makes codes sparse.
    """

    def __init__(
        self,
        *,
        in_shapes: Sequence[Shape],
        cond_dim: int,
        prior: PriorFactory,
        z_dim: Size | tuple[Size, ...] = 32,
        spatial: bool = False,
        l1: float = 0.0,
    ):
        super().__init__()
        if l1 < 0:
            raise ValueError(f"l1 is {l1}, but a weight cannot be negative")
        heads = make_heads(in_shapes, cond_dim, z_dim, spatial=spatial, numbers=1)
        self.heads = nn.ModuleList(heads)
        self.z_shapes: tuple[Shape, ...] = tuple(head.shape for head in heads)
        self.prior = prior(z_shapes=self.z_shapes)
        self.l1 = l1

    def forward(
        self, h: tuple[Tensor, ...], c: Tensor, *, num_samples: int, step: StepContext
    ) -> Code:
        z = self.mean(h, c)
        rate = z[0].new_zeros(num_samples, z[0].shape[0], 0)
        penalty = self.l1 * flatten(z).abs().sum(1)
        return Code(tuple(repeat(level, num_samples) for level in z), rate, penalty)

    def mean(self, h: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, ...]:
        return tuple(head(level, c)[0] for head, level in zip(self.heads, h, strict=True))


class Gaussian(nn.Module):
    """A diagonal Gaussian posterior, as in a VAE (Kingma and Welling 2014).

    The rate is charged for the Gaussian that is sampled from, σ = exp(logvar / 2).

    Args:
        z_dim: numbers per code (per position, if spatial), for every level or for each.
        spatial: keep the positions of the features instead of flattening them.
        logvar_bound: log variances are squashed smoothly into ± this.
        stl: the rate is that of a sample, and its gradient passes through the sample alone, which
            leaves no noise in it where the posterior is right (Roeder et al. 2017).
    """

    def __init__(
        self,
        *,
        in_shapes: Sequence[Shape],
        cond_dim: int,
        prior: PriorFactory,
        z_dim: Size | tuple[Size, ...] = 32,
        spatial: bool = False,
        logvar_bound: float = 10.0,
        stl: bool = False,
    ):
        super().__init__()
        if logvar_bound <= 0:
            raise ValueError(f"logvar_bound is {logvar_bound}, but it must be positive")
        heads = make_heads(in_shapes, cond_dim, z_dim, spatial=spatial, numbers=2)
        self.heads = nn.ModuleList(heads)
        self.z_shapes: tuple[Shape, ...] = tuple(head.shape for head in heads)
        self.prior = prior(z_shapes=self.z_shapes)
        self.logvar_bound, self.stl = logvar_bound, stl

    def forward(
        self, h: tuple[Tensor, ...], c: Tensor, *, num_samples: int, step: StepContext
    ) -> Code:
        posterior = self.posterior(h, c)
        mean, logvar = posterior
        # Drawn with the batch axis first, as all noise is; then (K, B, D).
        noise = step.randn((mean.shape[0], num_samples, mean.shape[1])).transpose(0, 1)
        flat = mean + torch.exp(0.5 * logvar) * noise
        z = unflatten(flat.flatten(0, 1), self.z_shapes)

        rate = self.prior.kl(posterior, c) if num_samples == 1 and not self.stl else None
        if rate is not None:
            rate = rate[None]
        else:
            if self.stl:
                mean, logvar = mean.detach(), logvar.detach()
                noise = (flatten(z).reshape(noise.shape) - mean) * torch.exp(-0.5 * logvar)
            log_q = -0.5 * (noise.square() + logvar + math.log(2 * math.pi))
            log_p = self.prior.log_prob(z, repeat(c, num_samples)).reshape(
                num_samples, len(mean), -1
            )
            if log_p.shape[-1] != log_q.shape[-1]:
                log_q = log_q.sum(-1, keepdim=True)
            rate = log_q - log_p
        return Code(z, rate, mean.new_zeros(mean.shape[0]))

    def mean(self, h: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, ...]:
        return unflatten(self.posterior(h, c).mean, self.z_shapes)

    def posterior(self, h: tuple[Tensor, ...], c: Tensor) -> Posterior:
        """Mean and log variance, `(B, D)` each, in fp32."""
        pairs = [head(level, c) for head, level in zip(self.heads, h, strict=True)]
        mean = flatten([pair[0] for pair in pairs]).float()
        logvar = flatten([pair[1] for pair in pairs]).float()
        return Posterior(mean, self.logvar_bound * torch.tanh(logvar / self.logvar_bound))


class Head(nn.Module):
    """Features and condition to `numbers` numbers per code dimension: linear, or 1x1 if spatial."""

    def __init__(self, in_shape: Shape, *, cond_dim: int, z_dim: int, spatial: bool, numbers: int):
        super().__init__()
        if spatial and len(in_shape) < 2:
            raise ValueError(f"spatial codes need features with positions, not of shape {in_shape}")
        self.shape: Shape = (z_dim, *in_shape[1:]) if spatial else (z_dim,)
        self.numbers = numbers
        self.spatial = spatial
        width = in_shape[0] if spatial else math.prod(in_shape)
        self.linear = nn.Linear(width + cond_dim, numbers * z_dim)

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """`(B, *in_shape)` and `(B, cond_dim)` to `numbers` tensors `(B, *shape)`."""
        if not self.spatial:
            return self.linear(torch.cat([h.flatten(1), c], 1)).chunk(self.numbers, 1)
        c = c.reshape(*c.shape, *(1 for _ in h.shape[2:])).expand(-1, -1, *h.shape[2:])
        out = self.linear(torch.cat([h, c], 1).movedim(1, -1)).movedim(-1, 1)
        return tuple(out.chunk(self.numbers, 1))


def make_heads(
    in_shapes: Sequence[Shape],
    cond_dim: int,
    z_dim: int | tuple[int, ...],
    *,
    spatial: bool,
    numbers: int,
) -> list[Head]:
    dims = (z_dim,) * len(in_shapes) if isinstance(z_dim, int) else z_dim
    if len(dims) != len(in_shapes):
        raise ValueError(f"z_dim has {len(dims)} levels, but the encoder gives {len(in_shapes)}")
    return [
        Head(shape, cond_dim=cond_dim, z_dim=dim, spatial=spatial, numbers=numbers)
        for shape, dim in zip(in_shapes, dims, strict=True)
    ]
