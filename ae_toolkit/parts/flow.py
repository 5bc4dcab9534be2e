"""Densities made of invertible steps, as a prior and as a posterior.

Axes: N codes, B examples, K posterior samples, D code dimensions over all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import (
    Code,
    Levels,
    Posterior,
    Prior,
    Shape,
    Size,
    StepContext,
    flatten,
    repeat,
    unflatten,
)
from ae_toolkit.parts.bottleneck import Gaussian, PriorFactory


class Flow(nn.Module):
    """A learned density: affine coupling layers from the code to N(0, I) (Dinh et al. 2017).

    Learned together with the rest, it takes from the rate what a fixed prior would charge for the
    aggregate posterior's shape (Chen et al. 2017). It begins as N(0, I).

    Args:
        layers: couplings; each leaves the other half of the code unchanged.
        hidden: width of each coupling's two hidden layers.
    """

    def __init__(
        self, *, z_shapes: Sequence[Shape], cond_dim: int, layers: Size = 6, hidden: Size = 128
    ):
        super().__init__()
        self.z_shapes = tuple(z_shapes)
        self.couplings = make_couplings(z_shapes, layers=layers, hidden=hidden, cond_dim=cond_dim)

    def log_prob(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        x, total = run_couplings(self.couplings, flatten(z).float(), c)
        return (total - 0.5 * (x.square() + math.log(2 * math.pi)).sum(1))[:, None]

    def kl(self, posterior: Posterior, c: Tensor) -> None:
        return None

    def sample(
        self, num: int, c: Tensor, *, temperature: float, step: StepContext
    ) -> tuple[Tensor, ...]:
        x = temperature * step.randn((num, sum(math.prod(shape) for shape in self.z_shapes)))
        for coupling in reversed(list(self.couplings)):
            assert isinstance(coupling, Coupling)
            x = coupling.inverse(x, c)
        return unflatten(x, self.z_shapes)


class FlowPosterior(nn.Module):
    """A Gaussian posterior that couplings bend, as the features say (Rezende and Mohamed 2015).

    z = f(μ + σ·ε; h), log q(z) = log N(ε) - Σ log σ - log |∂f|. It begins as the Gaussian. Kingma
    et al. 2016 find that such a posterior is worth more than a nat; theirs is an inverse
    autoregressive flow, of which a coupling is the special case with two groups.

    Args:
        z_dim: numbers per code (per position, if spatial), for every level or for each.
        spatial: keep the positions of the features instead of flattening them.
        layers: couplings; each leaves the other half of the code unchanged.
        hidden: width of each coupling's two hidden layers.
        context: numbers of the features that the couplings see.
    """

    def __init__(
        self,
        *,
        in_shapes: Sequence[Shape],
        cond_dim: int,
        prior: PriorFactory,
        z_dim: Size | tuple[Size, ...] = 32,
        spatial: bool = False,
        layers: Size = 4,
        hidden: Size = 128,
        context: Size = 64,
    ):
        super().__init__()
        self.base = Gaussian(
            in_shapes=in_shapes, cond_dim=cond_dim, prior=prior, z_dim=z_dim, spatial=spatial
        )
        self.z_shapes = self.base.z_shapes
        num_features = sum(math.prod(shape) for shape in in_shapes)
        self.context = nn.Linear(num_features + cond_dim, context)
        self.couplings = make_couplings(
            self.z_shapes, layers=layers, hidden=hidden, cond_dim=context
        )

    @property
    def prior(self) -> Prior:
        return self.base.prior

    def forward(self, h: Levels, c: Tensor, *, num_samples: int, step: StepContext) -> Code:
        mean, logvar = self.base.posterior(h, c)
        noise = step.randn((len(mean), num_samples, mean.shape[1])).transpose(0, 1)
        log_q = -0.5 * (noise.square() + logvar + math.log(2 * math.pi)).sum(2)  # (K, B)
        drawn = (mean + torch.exp(0.5 * logvar) * noise).flatten(0, 1)
        x, log_scale = self._bend(drawn, h, c)
        z = unflatten(x, self.z_shapes)
        log_p = self.prior.log_prob(z, repeat(c, num_samples)).sum(1)
        rate = log_q - (log_scale + log_p).unflatten(0, (num_samples, -1))
        return Code(z, rate[..., None], mean.new_zeros(len(mean)))

    def mean(self, h: Levels, c: Tensor) -> Levels:
        """The code that the middle of the Gaussian becomes."""
        return unflatten(self._bend(self.base.posterior(h, c).mean, h, c)[0], self.z_shapes)

    def _bend(self, x: Tensor, h: Levels, c: Tensor) -> tuple[Tensor, Tensor]:
        """`(N, D)`, drawn from the Gaussian, to codes and the log determinant `(N,)`."""
        context = self.context(torch.cat([flatten(h), c], 1))
        return run_couplings(self.couplings, x, repeat(context, len(x) // len(c)))


class Coupling(nn.Module):
    """Scales and shifts one half of a vector by what the other half and the condition say.

    Args:
        dim: D.
        cond_dim: of the condition.
        hidden: width of the two hidden layers.
        odd: which half, of the even and the odd dimensions, is changed.
    """

    def __init__(self, dim: int, *, cond_dim: int, hidden: int, odd: bool):
        super().__init__()
        self.odd = odd
        kept, moved = ((dim + 1) // 2, dim // 2) if odd else (dim // 2, (dim + 1) // 2)
        last = nn.Linear(hidden, 2 * moved)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Linear(kept + cond_dim, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            last,
        )

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """`(N, D)` one step nearer to the standard normal, and the log determinant `(N,)`."""
        kept, moved = self._halves(x)
        shift, log_scale = self._affine(kept, c)
        return self._join(kept, (moved + shift) * log_scale.exp()), log_scale.sum(1)

    def inverse(self, x: Tensor, c: Tensor) -> Tensor:
        """Undoes `forward`."""
        kept, moved = self._halves(x)
        shift, log_scale = self._affine(kept, c)
        return self._join(kept, moved * (-log_scale).exp() - shift)

    def _affine(self, kept: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.layers(torch.cat([kept, c], 1)).float().chunk(2, 1)
        return shift, 2 * torch.tanh(log_scale / 2)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x[:, ::2], x[:, 1::2]) if self.odd else (x[:, 1::2], x[:, ::2])

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        even, odd = (kept, moved) if self.odd else (moved, kept)
        both = even.new_empty(even.shape[0], even.shape[1] + odd.shape[1])
        both[:, ::2], both[:, 1::2] = even, odd
        return both


def make_couplings(
    z_shapes: Sequence[Shape], *, layers: int, hidden: int, cond_dim: int
) -> nn.ModuleList:
    """Couplings that change the odd and the even numbers of a code in turn."""
    dim = sum(math.prod(shape) for shape in z_shapes)
    if dim < 2:
        raise ValueError("a flow needs codes of at least two numbers")
    return nn.ModuleList(
        Coupling(dim, cond_dim=cond_dim, hidden=hidden, odd=bool(i % 2)) for i in range(layers)
    )


def run_couplings(couplings: nn.ModuleList, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """`(N, D)` through all of them, and the log determinant `(N,)`."""
    total = x.new_zeros(x.shape[0])
    for coupling in couplings:
        x, log_scale = coupling(x, c)
        total = total + log_scale
    return x, total
