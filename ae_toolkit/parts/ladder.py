"""A code on several levels, each of which depends on those above it.

Axes: B examples, K posterior samples, N codes, D code dimensions over all levels, W width of the
state that is passed down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import (
    Code,
    Posterior,
    Prior,
    Shape,
    Size,
    Sizes,
    StepContext,
    flatten,
    repeat,
)
from ae_toolkit.parts.bottleneck import PriorFactory

LOGVAR_BOUND = 8.0  #: log variances are squashed smoothly into ± this


class Ladder(nn.Module):
    """A top-down hierarchy of Gaussian codes: the ladder VAE (Sønderby et al. 2016).

    Posterior and prior share one path. At each level both see the state that the levels above have
    left; the posterior says how far it is from the prior (Vahdat and Kautz 2020). The decoder reads
    the last state, so that nothing comes to it but through the codes.

    Args:
        z_dim: numbers of each level, from the top.
        width: W.
    """

    def __init__(
        self,
        *,
        in_shapes: Sequence[Shape],
        cond_dim: int,
        prior: PriorFactory,
        z_dim: Sizes = (8, 16, 24),
        width: Size = 256,
    ):
        super().__init__()
        self.z_shapes: tuple[Shape, ...] = tuple((dim,) for dim in z_dim)
        self.feature_shapes: tuple[Shape, ...] = ((width,),)
        top = prior(z_shapes=self.z_shapes[:1])
        if hasattr(top, "fit"):
            raise ValueError("a ladder learns its prior beside it, and none can be fitted later")
        self.prior = TopDown(z_dim, top=top, cond_dim=cond_dim, width=width)
        seen = sum(math.prod(shape) for shape in in_shapes) + cond_dim + width
        self.heads = nn.ModuleList(nn.Linear(seen, 2 * dim) for dim in z_dim)

    def forward(
        self, h: tuple[Tensor, ...], c: Tensor, *, num_samples: int, step: StepContext
    ) -> Code:
        noise = step.randn((len(c), num_samples, sum(shape[0] for shape in self.z_shapes)))
        noise = noise.transpose(0, 1).flatten(0, 1)
        many, many_c = repeat(flatten(h), num_samples), repeat(c, num_samples)
        z, posteriors, priors, state = self._descend(many, many_c, noise)
        mean, logvar = (torch.cat([each[i] for each in posteriors], 1) for i in (0, 1))
        log_q = -0.5 * (noise.square() + logvar + math.log(2 * math.pi))
        log_p = self.prior.log_prob(z, many_c)
        if log_p.shape != log_q.shape:
            log_q = log_q.sum(1, keepdim=True)
        rate = log_q - log_p
        top = z[0].shape[1]
        first = self.prior.top.kl(Posterior(mean[:, :top], logvar[:, :top]), many_c)
        if num_samples == 1 and first is not None:
            below = [_kl(q, p) for q, p in zip(posteriors[1:], priors, strict=True)]
            rate = torch.cat([first, *below], 1)
        return Code(z, rate.unflatten(0, (num_samples, -1)), mean.new_zeros(len(c)), (state,))

    def mean(self, h: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, ...]:
        return self._descend(flatten(h), c, None)[0]

    def embed(self, z: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, ...]:
        """Codes of all levels to the last state, `(N, W)`."""
        state = self.prior.begin(z[0], c)
        for i, level in enumerate(z[1:]):
            state = self.prior.go_on(i, state, level)
        return (state,)

    def _descend(
        self, h: Tensor, c: Tensor, noise: Tensor | None
    ) -> tuple[tuple[Tensor, ...], list[Posterior], list[Posterior], Tensor]:
        """The codes of all levels, their posteriors, the priors below the top, the last state.

        Args:
            h: features `(N, …)`, flattened.
            c: the condition.
            noise: `(N, D)`; None: codes are posterior means.
        """
        state = h.new_zeros(len(h), self.feature_shapes[0][0])
        base = Posterior(h.new_zeros(len(h), 1), h.new_zeros(len(h), 1))
        parts = None if noise is None else noise.split([shape[0] for shape in self.z_shapes], 1)
        z: list[Tensor] = []
        posteriors, priors = [], []
        for i, head in enumerate(self.heads):
            if i:
                base = self.prior.below(i - 1, state)
                priors.append(base)
            mean, logvar = head(torch.cat([h, c, state], 1)).float().chunk(2, 1)
            logvar = LOGVAR_BOUND * torch.tanh((base.logvar + logvar) / LOGVAR_BOUND)
            posteriors.append(Posterior(base.mean + mean, logvar))
            spread = 0.0 if parts is None else torch.exp(0.5 * logvar) * parts[i]
            z.append(posteriors[i].mean + spread)
            state = self.prior.go_on(i - 1, state, z[i]) if i else self.prior.begin(z[0], c)
        return tuple(z), posteriors, priors, state


class TopDown(nn.Module):
    """The prior of a ladder: the path from the top, and what it expects at each level.

    Args:
        z_dims: numbers of each level.
        top: the prior of the first.
        cond_dim: of the condition.
        width: W.
    """

    def __init__(self, z_dims: Sequence[int], *, top: Prior, cond_dim: int, width: int):
        super().__init__()
        self.top = top
        self.entry = _net(z_dims[0] + cond_dim, width, width)
        self.expect = nn.ModuleList(_net(width, width, 2 * dim) for dim in z_dims[1:])
        self.merge = nn.ModuleList(_net(width + dim, width, width) for dim in z_dims[1:])
        for net in self.expect:
            assert isinstance(net, nn.Sequential) and isinstance(net[-1], nn.Linear)
            net[-1].weight.data.mul_(0.1)  # it begins near N(0, I)

    def begin(self, z: Tensor, c: Tensor) -> Tensor:
        """The state `(N, W)` that the top level `(N, z_dims[0])` leaves."""
        state: Tensor = self.entry(torch.cat([z, c], 1))
        return state

    def below(self, i: int, state: Tensor) -> Posterior:
        """What is expected of the i-th level below the top."""
        mean, logvar = self.expect[i](state).float().chunk(2, 1)
        return Posterior(mean, LOGVAR_BOUND * torch.tanh(logvar / LOGVAR_BOUND))

    def go_on(self, i: int, state: Tensor, z: Tensor) -> Tensor:
        """The state after the i-th level below the top."""
        changed: Tensor = state + self.merge[i](torch.cat([state, z], 1))
        return changed

    def log_prob(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        first = self.top.log_prob(z[:1], c)
        state, found = self.begin(z[0], c), [first]
        for i, level in enumerate(z[1:]):
            mean, logvar = self.below(i, state)
            square = (level - mean).square() * torch.exp(-logvar)
            found.append(-0.5 * (square + logvar + math.log(2 * math.pi)))
            state = self.go_on(i, state, level)
        all_levels = torch.cat(found, 1)
        return all_levels if first.shape == z[0].shape else all_levels.sum(1, keepdim=True)

    def kl(self, posterior: Posterior, c: Tensor) -> None:
        return None

    def sample(
        self, num: int, c: Tensor, *, temperature: float, step: StepContext
    ) -> tuple[Tensor, ...]:
        z = list(self.top.sample(num, c, temperature=temperature, step=step))
        state = self.begin(z[0], c)
        for i in range(len(self.expect)):
            mean, logvar = self.below(i, state)
            noise = temperature * step.randn(tuple(mean.shape))
            z.append(mean + torch.exp(0.5 * logvar) * noise)
            state = self.go_on(i, state, z[-1])
        return tuple(z)


def _net(dim: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, out))


def _kl(q: Posterior, p: Posterior) -> Tensor:
    """KL of one diagonal Gaussian from another, `(N, D)` nats."""
    square = (q.mean - p.mean).square() + q.logvar.exp()
    return 0.5 * (square * torch.exp(-p.logvar) + p.logvar - q.logvar - 1)
