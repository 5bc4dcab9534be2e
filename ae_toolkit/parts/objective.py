"""How distortion, rate and penalty make one loss per example.

Axes: K posterior samples, B examples, D code dimensions.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ae_toolkit.contracts import Levels, StepContext, Terms
from ae_toolkit.errors import UsageError

FULL_SPEED_SHARE = 0.1  #: of its tolerance by which a distortion is off where GECO is fastest
MAX_LOG_MULTIPLIER = 12.0  #: of GECO: e^12 is beyond what any tolerance needs that can be reached


class ELBO:
    """The negative evidence lower bound, mean over K of distortion + β·Σ max(rate, free bits).

    β-VAE: Higgins et al. 2017. Free bits: Kingma et al. 2016, eq. 15, here per example.
    Cyclical warm-up: Fu et al. 2019.

    Args:
        beta: the weight of the rate, once warm.
        warmup: the share of the training (or of each cycle) in which β rises linearly from 0.
        cycles: how often the rise begins anew.
        free_bits: nats that cost nothing (the name is the paper's).
        free_bits_per: whether each `dimension` has them, or the `total`.
        num_samples: K.
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        warmup: float = 0.0,
        cycles: int = 1,
        free_bits: float = 0.0,
        free_bits_per: Literal["dimension", "total"] = "dimension",
        num_samples: int = 1,
    ):
        if beta < 0 or free_bits < 0 or not 0 <= warmup <= 1:
            raise ValueError("beta and free_bits must not be negative, warmup must lie in [0, 1]")
        if cycles < 1 or num_samples < 1:
            raise ValueError("cycles and num_samples must be at least 1")
        self.beta, self.warmup, self.cycles = beta, warmup, cycles
        self.free_bits, self.free_bits_per = free_bits, free_bits_per
        self.num_samples = num_samples

    def __call__(self, terms: Terms, step: StepContext) -> Tensor:
        rate = terms.rate
        if self.free_bits_per == "total":
            rate = rate.sum(-1, keepdim=True)
        if self.free_bits:
            rate = rate.clamp(min=self.free_bits)
        return (terms.distortion + self._beta(step) * rate.sum(-1)).mean(0) + terms.penalty

    def _beta(self, step: StepContext) -> Tensor | float:
        if not self.warmup:
            return self.beta
        # The last moment belongs to the last cycle, not to a new one.
        position = torch.where(step.progress < 1, (step.progress * self.cycles) % 1, 1.0)
        return self.beta * (position / self.warmup).clamp(max=1)


class IWAE:
    """The importance-weighted bound, -log mean over K of exp(-(distortion + Σ rate)).

    Burda, Grosse and Salakhutdinov 2016, eq. 8.

    Args:
        num_samples: K.
        dreg: the doubly reparametrised gradient for the encoder, whose signal does not drown in
            noise where K is large (Tucker et al. 2019, eq. 8); with `bottleneck.stl`.
    """

    def __init__(self, *, num_samples: int = 5, dreg: bool = False):
        if num_samples < 1:
            raise ValueError("num_samples must be at least 1")
        self.num_samples, self.dreg = num_samples, dreg

    def __call__(self, terms: Terms, step: StepContext) -> Tensor:
        log_weights = -(terms.distortion + terms.rate.sum(-1))
        if self.dreg:
            _weigh_gradients(terms.z, log_weights.softmax(0).detach().flatten())
        return terms.penalty - logmeanexp(log_weights)


class GECO(nn.Module):
    """The least rate at which the distortion is as small as it is asked to be.

    Rezende and Viola 2018, algorithm 1: the loss is rate + λ (distortion - tolerance). In training
    λ grows while the distortion, in a moving average, is beyond the tolerance, and shrinks while it
    is below. A validation counts λ times what the distortion is beyond the tolerance in the mean.

    Args:
        tolerance: what the distortion of an example may be in the mean.
        speed: by which share λ changes in a step, where the distortion is a tenth off or more.
        decay: of the moving average.
        num_samples: K.
    """

    log_multiplier: Tensor
    average: Tensor

    def __init__(
        self,
        *,
        tolerance: Annotated[float, Field(allow_inf_nan=False)],
        speed: Annotated[float, Field(gt=0, le=1)] = 0.01,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
        num_samples: Annotated[int, Field(ge=1)] = 1,
    ):
        super().__init__()
        self.tolerance, self.speed, self.decay = tolerance, speed, decay
        self.num_samples = num_samples
        self.register_buffer("log_multiplier", torch.zeros(()))
        self.register_buffer("average", torch.tensor(math.inf))  # before the first batch

    def forward(self, terms: Terms, step: StepContext) -> Tensor:
        beyond = terms.distortion.mean(0) - self.tolerance
        if self.training:
            self._update(step.gather(beyond).mean())
        else:
            beyond = beyond.mean().clamp(min=0)
        return self.log_multiplier.exp() * beyond + terms.rate.sum(-1).mean(0) + terms.penalty

    @torch.no_grad()
    def _update(self, beyond: Tensor) -> None:
        """Moves λ by how far a batch is beyond the tolerance, `()`, relative to that."""
        average = torch.where(
            self.average.isinf(), beyond, self.average.lerp(beyond, 1 - self.decay)
        )
        self.average.copy_(average)
        share = (average / (FULL_SPEED_SHARE * (abs(self.tolerance) or 1.0))).clamp(-1, 1)
        self.log_multiplier.add_(self.speed * share).clamp_(-MAX_LOG_MULTIPLIER, MAX_LOG_MULTIPLIER)


def _weigh_gradients(z: Levels, weights: Tensor) -> None:
    """Has the gradient at each code multiplied by a weight `(N,)`, once it is known.

    Raises:
        UsageError: gradients to the posterior do not all pass through the code.
    """
    if not z:
        raise UsageError("objective 'iwae' with dreg needs --set bottleneck.stl=true")
    for level in z:
        if level.requires_grad:  # else it is a validation
            shape = (-1, *(1 for _ in level.shape[1:]))
            level.register_hook(lambda grad, shape=shape: grad * weights.reshape(shape))


def logmeanexp(values: Tensor) -> Tensor:
    """Stable log of the mean of exponentials over the first axis."""
    return torch.logsumexp(values, 0) - math.log(values.shape[0])
