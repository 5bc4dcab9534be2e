"""Codes whose distribution over the data is drawn to the prior, or to independence, as a whole.

Each holds a plain or Gaussian bottleneck and adds a penalty to what that charges. Critics learn in
the same optimiser: what moves the codes goes through a critic's detached weights, and what moves
the critic is of detached codes.

Axes: B examples, K posterior samples, D code dimensions over all levels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ae_toolkit.contracts import Code, Levels, Posterior, Prior, Shape, Size, StepContext, flatten
from ae_toolkit.parts.bottleneck import Deterministic, Gaussian, PriorFactory

CRITIC_DECAY = 0.99  #: of the mean of how much a critic tells rightly
MAX_TOLD_APART = 0.9  #: of codes and the prior's draws; beyond it a critic has won
KERNEL_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  #: of the kernels that are added up


class Penalised(nn.Module, ABC):
    """A bottleneck that charges its codes for how they lie in the batch, beside what it charges.

    Args:
        inner: the bottleneck.
        weight: of the penalty.
    """

    def __init__(self, inner: Deterministic | Gaussian, *, weight: float):
        super().__init__()
        _need_weight(weight)
        self.inner, self.weight = inner, weight
        self.z_shapes = inner.z_shapes

    @property
    def prior(self) -> Prior:
        return self.inner.prior

    @abstractmethod
    def penalty(self, z: Tensor, h: Levels, c: Tensor, step: StepContext) -> Tensor:
        """What the first sample of each code `(B, D)` pays, `(B,)`."""

    def forward(self, h: Levels, c: Tensor, *, num_samples: int, step: StepContext) -> Code:
        code = self.inner(h, c, num_samples=num_samples, step=step)
        z = flatten(code.z)[: len(c)].float()
        return code._replace(penalty=code.penalty + self.penalty(z, h, c, step))

    def mean(self, h: Levels, c: Tensor) -> Levels:
        return self.inner.mean(h, c)

    def sample_prior(self, c: Tensor, step: StepContext) -> Tensor:
        """Codes of the prior, one for each example, `(B, D)`, without gradients."""
        drawn = self.prior.sample(len(c), c, temperature=1.0, step=step)
        return flatten(drawn).float().detach()


class MMD(Penalised):
    """Codes that have the prior's distribution, by maximum mean discrepancy (Gretton et al. 2012).

    A plain code with it is a Wasserstein autoencoder (WAE-MMD, Tolstikhin et al. 2018), one that is
    drawn from a Gaussian an InfoVAE (Zhao et al. 2019), with the weight of its rate in the
    objective.

    Args:
        z_dim: numbers per code (per position, if spatial), for every level or for each.
        spatial: keep the positions of the features instead of flattening them.
        variational: draw codes from a Gaussian, which pays its rate.
        kernel: `imq`, inverse multiquadratics, or `rbf`, Gaussians; of several scales.
        weight: of the discrepancy, which is between 0 and 2 for each scale.
    """

    follows_prior = True

    def __init__(
        self,
        *,
        in_shapes: Sequence[Shape],
        cond_dim: int,
        prior: PriorFactory,
        z_dim: Size | tuple[Size, ...] = 8,
        spatial: bool = False,
        variational: bool = False,
        kernel: Literal["imq", "rbf"] = "imq",
        weight: float = 100.0,
    ):
        kind: Any = Gaussian if variational else Deterministic
        inner = kind(
            in_shapes=in_shapes, cond_dim=cond_dim, prior=prior, z_dim=z_dim, spatial=spatial
        )
        super().__init__(inner, weight=weight)
        if variational:
            self.posterior = inner.posterior
        self.kernel = kernel

    def penalty(self, z: Tensor, h: Levels, c: Tensor, step: StepContext) -> Tensor:
        real = self.sample_prior(c, step)
        return self.weight * self.discrepancy(z, real)

    def discrepancy(self, z: Tensor, real: Tensor) -> Tensor:
        """The unbiased estimate of MMD² of two batches `(B, D)`, each example's share `(B,)`."""
        others = 1 - torch.eye(len(z), device=z.device)
        pairs = max(len(z) - 1, 1)
        same = (self._similarity(z, z) + self._similarity(real, real)) * others
        return same.sum(1) / pairs - 2 * self._similarity(z, real).mean(1)

    def _similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Kernel values `(B, B)`; the usual distance of a standard normal's samples is 2D."""
        square = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        widths = [2 * a.shape[1] * scale for scale in KERNEL_SCALES]
        if self.kernel == "rbf":
            return torch.stack([torch.exp(-square / width) for width in widths]).sum(0)
        return torch.stack([width / (width + square) for width in widths]).sum(0)


class Adversarial(Penalised):
    """Codes that a critic cannot tell from the prior's: AAE (Makhzani et al. 2016).

    Args:
        z_dim: numbers per code (per position, if spatial), for every level or for each.
        spatial: keep the positions of the features instead of flattening them.
        hidden: widths of the critic.
        weight: of what the critic says, in the loss of the codes.
        noise: standard deviation of what is added to all that the critic sees, so that it cannot
            be sure of anything too early.
    """

    follows_prior = True
    told_apart: Tensor

    def __init__(
        self,
        *,
        in_shapes: Sequence[Shape],
        cond_dim: int,
        prior: PriorFactory,
        z_dim: Size | tuple[Size, ...] = 8,
        spatial: bool = False,
        hidden: tuple[Size, ...] = (256, 256),
        weight: float = 10.0,
        noise: float = 0.1,
    ):
        inner = Deterministic(
            in_shapes=in_shapes, cond_dim=cond_dim, prior=prior, z_dim=z_dim, spatial=spatial
        )
        super().__init__(inner, weight=weight)
        _need_weight(noise)
        self.critic = make_critic(_dim_of(self.z_shapes) + cond_dim, hidden)
        self.noise = noise
        self.register_buffer("told_apart", torch.tensor(0.5))  # the critic's share of right guesses

    def penalty(self, z: Tensor, h: Levels, c: Tensor, step: StepContext) -> Tensor:
        real = self.sample_prior(c, step)
        z = z + self.noise * step.randn(tuple(z.shape))
        real = real + self.noise * step.randn(tuple(real.shape))
        made, real = torch.cat([z, c], 1), torch.cat([real, c], 1)
        if self.training:
            with torch.no_grad():
                right = [
                    (self.critic(real) > 0).float().mean(),
                    (self.critic(made) < 0).float().mean(),
                ]
                self.told_apart.lerp_(step.gather(torch.stack(right)).mean(), 1 - CRITIC_DECAY)
        fooling, judging = critic_losses(self.critic, made, real)
        return self.weight * fooling + judging

    def warning(self) -> str:
        """Says that the critic wins for good, where it does; else nothing."""
        if self.told_apart < MAX_TOLD_APART:
            return ""
        return (
            f"the critic tells {self.told_apart:.0%} of codes from the prior's, so they do not "
            f"follow it, and samples will look like nothing: try a greater bottleneck.weight, or a "
            f'slower critic, as by train.lr_scale={{"bottleneck.critic": 0.3}}'
        )


class TotalCorrelation(Penalised):
    """A Gaussian code whose dimensions shall not know of each other: β-TCVAE (Chen et al. 2018).

    The total correlation KL(q(z) ‖ Π q(z_d)) is estimated from the batch by minibatch-stratified
    sampling (appendix C.2). A batch of several hundred examples or more estimates it better.

    Args:
        z_dim: numbers per code, for every level or for each.
        weight: β - 1, of the total correlation, which the rate holds once.
        num_examples: about how many are learned from.
    """

    def __init__(
        self,
        *,
        in_shapes: Sequence[Shape],
        cond_dim: int,
        prior: PriorFactory,
        z_dim: Size | tuple[Size, ...] = 10,
        weight: float = 5.0,
        num_examples: Size = 50_000,
    ):
        inner = Gaussian(in_shapes=in_shapes, cond_dim=cond_dim, prior=prior, z_dim=z_dim)
        super().__init__(inner, weight=weight)
        self.posterior = inner.posterior
        self.num_examples = num_examples

    def penalty(self, z: Tensor, h: Levels, c: Tensor, step: StepContext) -> Tensor:
        return self.weight * self.total_correlation(z, self.posterior(h, c))

    def total_correlation(self, z: Tensor, posterior: Posterior) -> Tensor:
        """Log q(z) minus the sum of log q(z_d), of samples `(B, D)` of a batch: `(B,)` nats."""
        mean, logvar = posterior
        square = (z[:, None] - mean).square() * torch.exp(-logvar)
        # (B, B, D): the code of one under the posterior of another
        log_q = -0.5 * (square + logvar + math.log(2 * math.pi))
        weight = self.log_weights(len(z)).to(z.device)
        joint = (weight + log_q.sum(2)).logsumexp(1)
        return joint - (weight[..., None] + log_q).logsumexp(1).sum(1)

    def log_weights(self, num: int) -> Tensor:
        """How much each posterior of a batch counts in q(z) at each code, `(num, num)` logarithms.

        A code's own posterior is one of all examples, and the others stand for the rest. In the
        paper one of these has another weight; any of them may be it, so here all have the mean.
        """
        rest = max(self.num_examples - 1, 1) / max(num - 1, 1)
        weights = torch.full((num, num), rest).fill_diagonal_(1.0)
        return (weights / self.num_examples).log()


class Factor(Penalised):
    """The same, by a critic that tells codes from ones with shuffled dimensions: FactorVAE.

    Kim and Mnih (2018), "Disentangling by Factorising".

    Args:
        z_dim: numbers per code, for every level or for each.
        hidden: widths of the critic.
        weight: γ, of the total correlation that the critic estimates.
    """

    def __init__(
        self,
        *,
        in_shapes: Sequence[Shape],
        cond_dim: int,
        prior: PriorFactory,
        z_dim: Size | tuple[Size, ...] = 10,
        hidden: tuple[Size, ...] = (256, 256),
        weight: float = 6.0,
    ):
        inner = Gaussian(in_shapes=in_shapes, cond_dim=cond_dim, prior=prior, z_dim=z_dim)
        super().__init__(inner, weight=weight)
        self.posterior = inner.posterior
        self.critic = make_critic(_dim_of(self.z_shapes), hidden)

    def penalty(self, z: Tensor, h: Levels, c: Tensor, step: StepContext) -> Tensor:
        order = step.rand(tuple(z.shape)).argsort(0)
        shuffled = z.detach().gather(0, order)
        # The critic's number for codes is log q(z) - log Π q(z_d), once it can tell them.
        correlation = ask_detached(self.critic, z)
        return self.weight * correlation + critic_loss(self.critic, shuffled, z.detach())


def make_critic(dim: int, hidden: Sequence[int]) -> nn.Sequential:
    """Layers from `(B, dim)` to a logit `(B, 1)`, above 0 where a code looks real."""
    layers: list[nn.Module] = []
    for before, after in zip((dim, *hidden), hidden, strict=False):
        layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(hidden[-1] if hidden else dim, 1))


def ask_detached(critic: nn.Module, codes: Tensor) -> Tensor:
    """The critic's logits `(B,)`, from which codes learn and the critic does not."""
    weights = {name: weight.detach() for name, weight in critic.named_parameters()}
    logits: Tensor = functional_call(critic, weights, (codes,))[:, 0]
    return logits


def critic_loss(critic: nn.Module, made: Tensor, real: Tensor) -> Tensor:
    """What the critic learns from, `(B,)`, and codes do not (Goodfellow et al. 2014)."""
    return (F.softplus(critic(made.detach())) + F.softplus(-critic(real)))[:, 0]


def critic_losses(critic: nn.Module, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """What the codes learn from, so as to look real, and what the critic does, `(B,)` each."""
    return F.softplus(-ask_detached(critic, made)), critic_loss(critic, made, real)


def _dim_of(shapes: Sequence[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _need_weight(*weights: float) -> None:
    for weight in weights:
        if weight < 0:
            raise ValueError(f"{weight} is negative, but a weight or a deviation cannot be")
