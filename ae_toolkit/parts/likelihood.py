"""What a decoder's numbers mean: each likelihood owns both its `nll` and its `sample`.

`SquaredError` and `CrossEntropy` are no likelihoods of the values that they are used on; they say
so (`is_density` is false), are reported as distortions, and never yield an NLL.

Axes: N examples, P parameters per element, then the shape of the data.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_toolkit.contracts import StepContext
from ae_toolkit.randomness import draw_classes


def misfit(likelihood: Any, y: Tensor) -> str:
    """Why a likelihood is no density of targets `(N, *shape)`, in words; empty: it is one.

    A distortion may be used on any values, unless it has a `misfit` of its own.
    """
    if hasattr(likelihood, "misfit"):
        reason: str = likelihood.misfit(y)
        return reason
    unfit = likelihood.is_density and not likelihood.supports(y)
    return "is for other values than the data holds" if unfit else ""


def name_misfit(y: Tensor, fits: Tensor, values: str) -> str:
    """Says for which values a likelihood is, and the first of `y` that does not fit; or nothing."""
    if bool(fits.all()):
        return ""
    return f"is for {values}, and the data holds {float(y[~fits][0]):g}"


def total(values: Tensor, mask: Tensor | None) -> Tensor:
    """Sums `(N, *shape)` to `(N,)`, where the mask `(N, T)` is true; T is the first of shape."""
    if mask is not None:
        values = values * mask.reshape(mask.shape + (1,) * (values.dim() - mask.dim()))
    return values.flatten(1).sum(1)


class Bernoulli(nn.Module):
    """Binary elements; the parameter is the logit."""

    is_density = True
    num_params = 1

    def __init__(self, *, num_classes: int):
        super().__init__()
        refuse_classes(num_classes, "bernoulli")

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return total(_cross_entropy(params[:, 0], y), mask)

    def misfit(self, y: Tensor) -> str:
        return name_misfit(y, (y == 0) | (y == 1), "zeros and ones")

    def supports(self, y: Tensor) -> bool:
        return not self.misfit(y)

    def sample(self, params: Tensor, *, temperature: float, step: StepContext) -> Tensor:
        """At temperature 0, the probabilities: what is drawn when one draws a mean."""
        logits = params[:, 0]
        if temperature == 0:
            return logits.sigmoid()
        return (step.rand(tuple(logits.shape)) < (logits / temperature).sigmoid()).to(logits.dtype)


class CrossEntropy(nn.Module):
    """Cross-entropy of grey values in [0, 1] as if they were probabilities: a distortion.

    It is least, but not zero, where the output equals the target.
    """

    is_density = False
    num_params = 1

    def __init__(self, *, num_classes: int):
        super().__init__()
        refuse_classes(num_classes, "cross-entropy")

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return total(_cross_entropy(params[:, 0], y), mask)

    def supports(self, y: Tensor) -> bool:
        return False

    def sample(self, params: Tensor, *, temperature: float, step: StepContext) -> Tensor:
        return params[:, 0].sigmoid()


class SquaredError(nn.Module):
    """The sum of squared errors, without a variance: a distortion.

    Args:
        squash: pass the output through a sigmoid first, for targets in [0, 1].
    """

    is_density = False
    num_params = 1

    def __init__(self, *, num_classes: int, squash: bool = False):
        super().__init__()
        refuse_classes(num_classes, "squared-error")
        self.squash = squash

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return total((self._mean(params) - y).square(), mask)

    def supports(self, y: Tensor) -> bool:
        return False

    def sample(self, params: Tensor, *, temperature: float, step: StepContext) -> Tensor:
        return self._mean(params)

    def _mean(self, params: Tensor) -> Tensor:
        return params[:, 0].sigmoid() if self.squash else params[:, 0]


class Gaussian(nn.Module):
    """Real elements with a normal density.

    Args:
        variance: `fixed` at `std`; `learned`, one number for all elements; or `predicted` by the
            decoder for each element.
        std: the fixed standard deviation, or the one that learning starts from.
    """

    is_density = True

    def __init__(self, *, num_classes: int, variance: str = "fixed", std: float = 1.0):
        super().__init__()
        refuse_classes(num_classes, "gaussian")
        if variance not in ("fixed", "learned", "predicted"):
            raise ValueError(f"variance is {variance!r}: choose fixed, learned or predicted")
        if std <= 0:
            raise ValueError(f"std is {std}, but a standard deviation must be positive")
        self.num_params = 2 if variance == "predicted" else 1
        start = torch.tensor(2 * math.log(std))
        self.logvar: Tensor
        if variance == "learned":
            self.logvar = nn.Parameter(start)
        else:
            self.register_buffer("logvar", start)

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        mean, logvar = self._moments(params)
        square = (y - mean).square() * torch.exp(-logvar)
        return total(0.5 * (square + logvar + math.log(2 * math.pi)), mask)

    def misfit(self, y: Tensor) -> str:
        return name_misfit(y, torch.isfinite(y), "finite numbers")

    def supports(self, y: Tensor) -> bool:
        return not self.misfit(y)

    def sample(self, params: Tensor, *, temperature: float, step: StepContext) -> Tensor:
        mean, logvar = self._moments(params)
        if temperature == 0:
            return mean
        return mean + temperature * torch.exp(0.5 * logvar) * step.randn(tuple(mean.shape))

    def _moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance; a predicted one is kept within e^±12 so that no step explodes."""
        if self.num_params == 1:
            return params[:, 0], self.logvar
        return params[:, 0], 12 * torch.tanh(params[:, 1] / 12) + self.logvar


class Categorical(nn.Module):
    """Elements that take one of `num_classes` values; the parameters are logits."""

    is_density = True

    def __init__(self, *, num_classes: int):
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f"categorical needs two classes per element or more, not {num_classes}"
            )
        self.num_params = num_classes

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return total(F.cross_entropy(params, y.long(), reduction="none"), mask)

    def misfit(self, y: Tensor) -> str:
        fits = (y >= 0) & (y < self.num_params) & (y == y.long())
        return name_misfit(y, fits, f"classes from 0 to {self.num_params - 1}")

    def supports(self, y: Tensor) -> bool:
        return not self.misfit(y)

    def sample(self, params: Tensor, *, temperature: float, step: StepContext) -> Tensor:
        """At temperature 0, the most likely class."""
        return draw_classes(params / temperature, step) if temperature > 0 else params.argmax(1)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    # As softplus, whose one exponential serves the gradient too.
    return F.softplus(logits) - logits * y


def refuse_classes(num_classes: int, name: str) -> None:
    if num_classes:
        raise ValueError(
            f"{name} is for real-valued elements, but these have {num_classes} classes"
        )
