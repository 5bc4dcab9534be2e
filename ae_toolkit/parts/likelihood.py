"""What a decoder's numbers mean: each likelihood owns both its `nll` and its `sample`.

`SquaredError` and `CrossEntropy` are no likelihoods of the values that they are used on; they say
so (`is_density` is false), are reported as distortions, and never yield an NLL.

Axes: N examples, P parameters per element, then the shape of the data.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_toolkit.contracts import StepContext
from ae_toolkit.randomness import draw_classes


def _total(values: Tensor, mask: Tensor | None) -> Tensor:
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
        _refuse_classes(num_classes, "bernoulli")

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return _total(_cross_entropy(params[:, 0], y), mask)

    def supports(self, y: Tensor) -> bool:
        return bool(((y == 0) | (y == 1)).all())

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
        _refuse_classes(num_classes, "cross-entropy")

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return _total(_cross_entropy(params[:, 0], y), mask)

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
        _refuse_classes(num_classes, "squared-error")
        self.squash = squash

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return _total((self._mean(params) - y).square(), mask)

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
        _refuse_classes(num_classes, "gaussian")
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
        return _total(0.5 * (square + logvar + math.log(2 * math.pi)), mask)

    def supports(self, y: Tensor) -> bool:
        return bool(torch.isfinite(y).all())

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
            raise ValueError("categorical needs a data type with at least two classes per element")
        self.num_params = num_classes

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return _total(F.cross_entropy(params, y.long(), reduction="none"), mask)

    def supports(self, y: Tensor) -> bool:
        return bool(((y >= 0) & (y < self.num_params)).all())

    def sample(self, params: Tensor, *, temperature: float, step: StepContext) -> Tensor:
        """At temperature 0, the most likely class."""
        return draw_classes(params / temperature, step) if temperature > 0 else params.argmax(1)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    # As softplus, whose one exponential serves the gradient too.
    return F.softplus(logits) - logits * y


def _refuse_classes(num_classes: int, name: str) -> None:
    if num_classes:
        raise ValueError(
            f"{name} is for real-valued elements, but these have {num_classes} classes"
        )
