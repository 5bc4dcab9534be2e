"""Likelihoods of values that are discrete and ordered: levels of a scale, and counts.

Axes: N examples, P parameters per element, M components, then the shape of the data.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ae_toolkit.contracts import Size, StepContext
from ae_toolkit.parts.likelihood import name_misfit, refuse_classes, total
from ae_toolkit.randomness import draw_classes, gamma, poisson

MAX_LOG_SCALE = 7.0  #: of a logistic: e^-7 is a quarter of the step between 256 levels
MAX_LOG_COUNT = 16.0  #: of the mean of counts; a float knows all whole numbers up to e^16.6
MAX_LOG_DISPERSION = 8.0  #: of an inverse dispersion, beyond which counts are nearly Poisson
LEVEL_TOLERANCE = 0.01  #: steps by which a value may be off its level: floats are rounded


class DiscretisedLogistic(nn.Module):
    """Elements on evenly spaced levels in [0, 1], such as k/255: logistics, integrated over each.

    Salimans et al. 2017, section 2.1; what lies beyond an end counts for its level.
    Elements are independent given the code, channels of one position too.

    The parameters are M means and M log scales, of values that are spread to [-1, 1], and before
    them M logits if there are several components.

    Args:
        levels: how many there are.
        components: M.
    """

    is_density = True

    def __init__(
        self,
        *,
        num_classes: int,
        levels: Annotated[int, Field(ge=2, le=65_536)] = 256,
        components: Size = 1,
    ):
        super().__init__()
        refuse_classes(num_classes, "discretised-logistic")
        self.levels, self.components = levels, components
        self.num_params = 2 if components == 1 else 3 * components

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        log_share, mean, log_scale = self._mixture(params)
        per_scale = torch.exp(-log_scale)
        centred = (2 * self._level(y) / (self.levels - 1) - 1)[:, None] - mean
        half = 1 / (self.levels - 1)
        below, above = (centred - half) * per_scale, (centred + half) * per_scale
        # σ(b) - σ(a) = σ(b) σ(-a) (1 - e^(a - b)), whose logs are finite whatever the scale is.
        level = self._level(y)[:, None]
        is_first, is_last = level <= 0, level >= self.levels - 1
        left = torch.where(is_last, 0.0, F.logsigmoid(above))
        right = torch.where(is_first, 0.0, F.logsigmoid(-below))
        between = torch.log(-torch.expm1(-2 * half * per_scale))
        each = left + right + torch.where(is_first | is_last, 0.0, between)
        return total(-torch.logsumexp(log_share + each, 1), mask)

    def misfit(self, y: Tensor) -> str:
        place = y * (self.levels - 1)
        fits = (place - self._level(y)).abs() < LEVEL_TOLERANCE
        return name_misfit(y, fits, f"{self.levels} evenly spaced values from 0 to 1")

    def supports(self, y: Tensor) -> bool:
        return not self.misfit(y)

    def sample(self, params: Tensor, *, temperature: float, step: StepContext) -> Tensor:
        """At temperature 0, the mean of the logistics within [0, 1]."""
        log_share, mean, log_scale = self._mixture(params)
        if temperature == 0:
            return ((1 + (log_share.exp() * mean).sum(1)) / 2).clamp(0, 1)
        chosen = draw_classes(log_share / temperature, step)[:, None]
        mean, log_scale = (each.gather(1, chosen)[:, 0] for each in (mean, log_scale))
        uniform = step.rand(tuple(mean.shape)).clamp(1e-7, 1 - 1e-7)
        value = (1 + mean + temperature * log_scale.exp() * torch.logit(uniform)) / 2
        return self._level(value) / (self.levels - 1)

    def _level(self, y: Tensor) -> Tensor:
        """The number of the nearest level, from 0."""
        return (y * (self.levels - 1)).round().clamp(0, self.levels - 1)

    def _mixture(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log shares, means and log scales, `(N, M, *shape)` each."""
        *logits, mean, scale = params.unflatten(1, (-1, self.components)).unbind(1)
        log_share = F.log_softmax(logits[0] if logits else torch.zeros_like(mean), 1)
        return log_share, mean, MAX_LOG_SCALE * torch.tanh(scale / MAX_LOG_SCALE)


class NegativeBinomial(nn.Module):
    """Counts whose variance is μ + μ²/θ: a Poisson whose rate is gamma distributed about μ.

    The parametrisation is that of scvi-tools (Lopez et al. 2018), mean and inverse dispersion. The
    parameters are log μ, and log θ where it is predicted.

    Args:
        dispersion: θ is `learned`, one number for all elements, or `predicted` for each.
    """

    is_density = True

    def __init__(
        self, *, num_classes: int, dispersion: Literal["learned", "predicted"] = "predicted"
    ):
        super().__init__()
        refuse_classes(num_classes, "negative-binomial")
        self.num_params = 2 if dispersion == "predicted" else 1
        self.log_dispersion = nn.Parameter(torch.zeros(())) if self.num_params == 1 else None

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        log_mean, log_theta = self._logs(params)
        theta, ratio = log_theta.exp(), log_mean - log_theta
        ways = torch.lgamma(y + theta) - torch.lgamma(theta) - torch.lgamma(y + 1)
        return total(theta * F.softplus(ratio) + y * F.softplus(-ratio) - ways, mask)

    def misfit(self, y: Tensor) -> str:
        fits = (y >= 0) & (y == y.round()) & torch.isfinite(y)
        return name_misfit(y, fits, "counts, whole numbers from 0 on")

    def supports(self, y: Tensor) -> bool:
        return not self.misfit(y)

    def sample(self, params: Tensor, *, temperature: float, step: StepContext) -> Tensor:
        """At temperature 0, the mean; above, temperature multiplies the dispersion 1/θ."""
        log_mean, log_theta = self._logs(params)
        if temperature == 0:
            return log_mean.exp()
        theta = log_theta.exp() / temperature
        return poisson(gamma(theta, step) * log_mean.exp() / theta, step)

    def _logs(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """log μ and log θ, kept within bounds smoothly so that no step explodes."""
        log_theta = params[:, 1] if self.log_dispersion is None else self.log_dispersion
        log_theta = MAX_LOG_DISPERSION * torch.tanh(log_theta / MAX_LOG_DISPERSION)
        log_mean = MAX_LOG_COUNT * torch.tanh(params[:, 0] / MAX_LOG_COUNT)
        return log_mean, log_theta.expand(log_mean.shape)
