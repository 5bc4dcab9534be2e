"""Codes on the unit sphere: a power spherical posterior and a uniform prior.

De Cao and Aziz 2020, instead of the von Mises-Fisher distribution, whose draws are rejected.

Axes: B examples, K posterior samples, N = K·B (sample-major), d numbers of a code (of one level).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_toolkit.contracts import Code, Posterior, Shape, Size, StepContext
from ae_toolkit.parts.bottleneck import PriorFactory, make_heads
from ae_toolkit.parts.prior import StandardNormal
from ae_toolkit.randomness import gamma

MAX_LOG_CONCENTRATION = 6.0  #: of κ / d: the angles about a direction are then of a few degrees


class PowerSpherical(NamedTuple):
    """A density on the unit sphere that is proportional to (1 + μᵀz)^κ."""

    mean: Tensor  #: μ, `(B, d)`, of length 1
    concentration: Tensor  #: κ, `(B,)`, above 0

    def log_prob(self, share: Tensor) -> Tensor:
        """Log density `(…, B)` where (1 + μᵀz) / 2 is `share`, `(…, B)`."""
        return self._log_norm() + self.concentration * (math.log(2) + share.log())

    def kl(self) -> Tensor:
        """KL from the uniform density, `(B,)` nats (equations 8 to 10 of the paper)."""
        a, b = self._alpha_beta()
        expected = math.log(2) + torch.digamma(a) - torch.digamma(a + b)
        return self._log_norm() + self.concentration * expected + log_area(self.mean.shape[1])

    def sample(self, num: int, step: StepContext) -> tuple[Tensor, Tensor]:
        """Draws `(num, B, d)`, to which gradients flow, and (1 + μᵀz) / 2 of each, `(num, B)`."""
        (batch, dim), (a, b) = self.mean.shape, self._alpha_beta()
        many = (each.expand(num, batch).T for each in (a, b))  # noise has the batch axis first
        up, down = (gamma(each, step).T for each in many)
        share = up / (up + down)
        sine = 2 * (share * down / (up + down)).sqrt()
        around = F.normalize(step.randn((batch, num, dim - 1)).transpose(0, 1), dim=-1)
        # About the first axis, then reflected so that this becomes μ.
        z = torch.cat([2 * share[..., None] - 1, sine[..., None] * around], -1)
        axis = F.normalize(_pole(dim, self.mean) - self.mean, dim=-1)
        return z - 2 * (z * axis).sum(-1, keepdim=True) * axis, share

    def _alpha_beta(self) -> tuple[Tensor, Tensor]:
        """Of the beta distribution that (1 + μᵀz) / 2 has."""
        half = torch.full_like(self.concentration, (self.mean.shape[1] - 1) / 2)
        return half + self.concentration, half

    def _log_norm(self) -> Tensor:
        a, b = self._alpha_beta()
        return torch.lgamma(a + b) - torch.lgamma(a) - (a + b) * math.log(2) - b * math.log(math.pi)


class UniformSphere(nn.Module):
    """The uniform density on the unit sphere of every level."""

    def __init__(self, *, z_shapes: Sequence[Shape]):
        super().__init__()
        self.z_shapes = tuple(z_shapes)

    def log_prob(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        area = sum(log_area(dim) for (dim,) in self.z_shapes)
        return z[0].new_full((len(z[0]), 1), -area, dtype=torch.float32)

    def kl(self, posterior: Posterior, c: Tensor) -> None:
        return None

    def sample(
        self, num: int, c: Tensor, *, temperature: float, step: StepContext
    ) -> tuple[Tensor, ...]:
        """At temperature 0 a point, from 1 on the whole sphere."""
        heat, levels = min(temperature, 1.0), []
        for (dim,) in self.z_shapes:
            noise = step.randn((num, dim))
            still = (1 - heat) * math.sqrt(dim) * _pole(dim, noise)
            levels.append(F.normalize(heat * noise + still, dim=1))
        return tuple(levels)


class Hypersphere(nn.Module):
    """Codes of length 1, of which the direction alone counts: an S-VAE (Davidson et al. 2018).

    Args:
        z_dim: d, for every level or for each; at least 2.
    """

    def __init__(
        self,
        *,
        in_shapes: Sequence[Shape],
        cond_dim: int,
        prior: PriorFactory,
        z_dim: Size | tuple[Size, ...] = 32,
    ):
        super().__init__()
        dims = (z_dim,) * len(in_shapes) if isinstance(z_dim, int) else z_dim
        if min(dims) < 2:
            raise ValueError("z_dim must be at least 2: a sphere in one dimension is two points")
        self.z_shapes: tuple[Shape, ...] = tuple((dim,) for dim in dims)
        if not isinstance(prior(z_shapes=self.z_shapes), StandardNormal):
            raise ValueError("its prior is uniform on the sphere: leave prior.name=standard-normal")
        self.prior = UniformSphere(z_shapes=self.z_shapes)
        wide = tuple(dim + 1 for dim in dims)
        self.heads = nn.ModuleList(make_heads(in_shapes, cond_dim, wide, spatial=False, numbers=1))

    def forward(
        self, h: tuple[Tensor, ...], c: Tensor, *, num_samples: int, step: StepContext
    ) -> Code:
        levels, rates = [], []
        for posterior in self._posteriors(h, c):
            z, share = posterior.sample(num_samples, step)
            levels.append(z.flatten(0, 1))
            sampled = posterior.log_prob(share) + log_area(z.shape[-1])
            rates.append(posterior.kl()[None] if num_samples == 1 else sampled)
        rate = torch.stack(rates, -1)
        return Code(tuple(levels), rate, rate.new_zeros(rate.shape[1]))

    def mean(self, h: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, ...]:
        return tuple(posterior.mean for posterior in self._posteriors(h, c))

    def _posteriors(self, h: tuple[Tensor, ...], c: Tensor) -> list[PowerSpherical]:
        """The density of every level, in fp32."""
        found = []
        for head, level in zip(self.heads, h, strict=True):
            direction, log_share = head(level, c)[0].float().tensor_split([-1], 1)
            bounded = MAX_LOG_CONCENTRATION * torch.tanh(log_share[:, 0] / MAX_LOG_CONCENTRATION)
            concentration = direction.shape[1] * bounded.exp()
            found.append(PowerSpherical(F.normalize(direction, dim=1), concentration))
        return found


def log_area(dim: int) -> float:
    """Log area of the unit sphere in `dim` dimensions."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def _pole(dim: int, like: Tensor) -> Tensor:
    """The first axis, `(dim,)`."""
    return torch.eye(1, dim, dtype=like.dtype, device=like.device)[0]
