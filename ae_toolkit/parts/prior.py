"""Where new codes come from.

Axes: N codes, B examples, D code dimensions over all levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import Posterior, Shape, Size, StepContext, flatten, unflatten

MAX_FITTED_DIM = 1024  #: numbers of a code that a mixture is fitted to
MAX_FITTED_CODES = 20_000  #: codes that it is fitted to
MAX_COMPONENTS = 100
EM_STEPS = 50


class StandardNormal(nn.Module):
    """N(0, I) on every dimension of every level."""

    def __init__(self, *, z_shapes: Sequence[Shape], cond_dim: int):
        super().__init__()
        self.z_shapes = tuple(z_shapes)

    def log_prob(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        return -0.5 * (flatten(z).square() + math.log(2 * math.pi))

    def kl(self, posterior: Posterior, c: Tensor) -> Tensor:
        mean, logvar = posterior
        return 0.5 * (mean.square() + logvar.exp() - logvar - 1)

    def sample(
        self, num: int, c: Tensor, *, temperature: float, step: StepContext
    ) -> tuple[Tensor, ...]:
        return tuple(temperature * step.randn((num, *shape)) for shape in self.z_shapes)


class Categorical(nn.Module):
    """All values of an integer alike, at every temperature."""

    def __init__(self, *, z_shapes: Sequence[Shape], cond_dim: int, num_classes: int):
        super().__init__()
        self.z_shapes, self.num_classes = tuple(z_shapes), num_classes

    def log_prob(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        return torch.full_like(flatten(z), -math.log(self.num_classes), dtype=torch.float32)

    def kl(self, posterior: Posterior, c: Tensor) -> None:
        return None

    def sample(
        self, num: int, c: Tensor, *, temperature: float, step: StepContext
    ) -> tuple[Tensor, ...]:
        uniform = (step.rand((num, *shape)) for shape in self.z_shapes)
        return tuple((u * self.num_classes).long() for u in uniform)


class Vamp(nn.Module):
    """A mixture of the posteriors of examples that are learned (Tomczak and Welling 2018).

    Axes: M components.

    Args:
        components: M.
    """

    def __init__(
        self,
        *,
        z_shapes: Sequence[Shape],
        cond_dim: int,
        in_shape: Shape,
        posterior: Callable[[Tensor, Tensor], Posterior],
        components: Size = 100,
    ):
        super().__init__()
        self.z_shapes, self.posterior, self.cond_dim = tuple(z_shapes), posterior, cond_dim
        self.examples = nn.Parameter(torch.rand(components, *in_shape))

    def log_prob(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        x, (mean, logvar) = flatten(z).float(), self._mixture()
        square = (x[:, None] - mean).square() * torch.exp(-logvar)
        each = -0.5 * (square + logvar + math.log(2 * math.pi)).sum(2)
        return each.logsumexp(1, keepdim=True) - math.log(len(mean))

    def kl(self, posterior: Posterior, c: Tensor) -> None:
        return None

    def sample(
        self, num: int, c: Tensor, *, temperature: float, step: StepContext
    ) -> tuple[Tensor, ...]:
        mean, logvar = self._mixture()
        share = min(temperature, 1) * step.rand((num,))  # at 0 all are of the first component
        chosen = (share * len(mean)).long().clamp(max=len(mean) - 1)
        noise = temperature * step.randn((num, mean.shape[1]))
        return unflatten(mean[chosen] + torch.exp(0.5 * logvar[chosen]) * noise, self.z_shapes)

    def _mixture(self) -> Posterior:
        """The components, `(M, D)` each, under no condition."""
        return self.posterior(
            self.examples, self.examples.new_zeros(len(self.examples), self.cond_dim)
        )


class FittedMixture(nn.Module):
    """A mixture of Gaussians, fitted to the codes once a training has ended; N(0, I) before.

    It makes a generator of a plain autoencoder: "ex-post density estimation" (Ghosh et al. 2020).

    Axes: M components.

    Args:
        components: M.
    """

    weight: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, *, z_shapes: Sequence[Shape], cond_dim: int, components: Size = 10):
        super().__init__()
        self.z_shapes = tuple(z_shapes)
        dim = sum(math.prod(shape) for shape in z_shapes)
        if dim > MAX_FITTED_DIM or components > MAX_COMPONENTS:
            raise ValueError(
                f"this prior is for codes of at most {MAX_FITTED_DIM:,} numbers, not {dim:,}, and "
                f"of at most {MAX_COMPONENTS} components"
            )
        self.register_buffer("weight", torch.full((components,), 1 / components))
        self.register_buffer("mean", torch.zeros(components, dim))
        self.register_buffer("scale", torch.eye(dim).repeat(components, 1, 1))

    def fit(self, z: tuple[Tensor, ...], c: Tensor) -> None:
        """Expectation and maximisation, from the codes' own mean and covariance."""
        x = flatten(z)[:: max(len(z[0]) // MAX_FITTED_CODES, 1)].double()
        least = 1e-4 * x.var(0, correction=0).mean() + 1e-8
        wide = torch.cov(x.T, correction=0).reshape(x.shape[1], -1) + least * torch.eye(
            x.shape[1], dtype=x.dtype, device=x.device
        )
        num = len(self.weight)
        self.weight.fill_(1 / num)
        self.mean.copy_(x[torch.linspace(0, len(x) - 1, num).long()])
        self.scale.copy_(torch.linalg.cholesky(wide).expand(num, -1, -1))
        for _ in range(EM_STEPS):
            share = self._joint(x.float()).softmax(1).double()  # (N, M)
            total = share.sum(0) + 1e-8
            self.weight.copy_(total / total.sum())
            mean = share.T @ x / total[:, None]
            self.mean.copy_(mean)
            for i in range(num):
                centred = x - mean[i]
                # One code in each component is as wide as all of them: none can shrink to a point.
                cov = ((share[:, i, None] * centred).T @ centred + wide) / (total[i] + 1)
                self.scale[i] = torch.linalg.cholesky(cov)
        order = self.weight.argsort(descending=True)
        for kept in (self.weight, self.mean, self.scale):
            kept.copy_(kept[order].clone())

    def log_prob(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        return self._joint(flatten(z).float()).logsumexp(1, keepdim=True)

    def kl(self, posterior: Posterior, c: Tensor) -> None:
        return None

    def sample(
        self, num: int, c: Tensor, *, temperature: float, step: StepContext
    ) -> tuple[Tensor, ...]:
        share = min(temperature, 1) * step.rand((num,))  # at 0 all are of the heaviest component
        chosen = torch.searchsorted(self.weight.cumsum(0), share).clamp(max=len(self.weight) - 1)
        noise = temperature * step.randn((num, self.mean.shape[1]))
        x = self.mean[chosen] + (self.scale[chosen] @ noise[:, :, None])[:, :, 0]
        return unflatten(x, self.z_shapes)

    def _joint(self, x: Tensor) -> Tensor:
        """Log density of `x` `(N, D)` and each component, `(N, M)`."""
        found = []
        for weight, mean, scale in zip(self.weight, self.mean, self.scale, strict=True):
            white = torch.linalg.solve_triangular(scale, (x - mean).T, upper=False)
            spread = scale.diagonal().log().sum() + 0.5 * len(mean) * math.log(2 * math.pi)
            found.append(weight.log() - spread - 0.5 * white.square().sum(0))
        return torch.stack(found, 1)
