"""Where new codes come from.

Axes: N codes, B examples, D code dimensions over all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_toolkit.contracts import Posterior, Shape, Size, StepContext, flatten, unflatten
from ae_toolkit.parts.backbones.transformer import Caches, grow, stack

MAX_FITTED_DIM = 1024  #: numbers of a code that a mixture is fitted to
MAX_FITTED_CODES = 20_000  #: codes that it is fitted to
MAX_COMPONENTS = 100
EM_STEPS = 50
CHUNK_CODES = 250  #: codes at once, where an autoregressive prior's density is only looked at


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
        dim = sum(math.prod(shape) for shape in z_shapes)
        if dim < 2:
            raise ValueError("a flow needs codes of at least two numbers")
        self.couplings = nn.ModuleList()
        for i in range(layers):
            self.couplings.append(Coupling(dim, cond_dim=cond_dim, hidden=hidden, odd=bool(i % 2)))

    def log_prob(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        x = flatten(z).float()
        total = x.new_zeros(x.shape[0])
        for coupling in self.couplings:
            x, log_scale = coupling(x, c)
            total = total + log_scale
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


class AutoregressivePrior(nn.Module):
    """A learned density in which every number of a code knows those before it.

    A causal transformer reads the positions of a spatial code in order, or a flat code number by
    number; within a position the numbers are modelled one after the other by a small net whose
    first layer accumulates them (RNADE, Uria et al. 2013). Each number has a mixture of Gaussians,
    so that codes may lie in clusters, as those of discrete data do. It begins near N(0, I).

    Axes: L positions, E numbers of each, H hidden units, M components.

    Args:
        width: of the transformer.
        layers: of attention and a feed-forward net each.
        heads: of every attention.
        hidden: H, of the net within a position.
        components: M, of every mixture.
    """

    def __init__(
        self,
        *,
        z_shapes: Sequence[Shape],
        cond_dim: int,
        width: Size = 128,
        layers: Size = 2,
        heads: Size = 4,
        hidden: Size = 128,
        components: Size = 8,
    ):
        super().__init__()
        if len(z_shapes) != 1:
            raise ValueError(f"this prior takes codes of one level, not of {len(z_shapes)}")
        (self.shape,) = z_shapes
        self.dim = self.shape[0] if len(self.shape) > 1 else 1
        self.length = math.prod(self.shape) // self.dim
        self.entry = nn.Linear(self.dim + cond_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(self.length, width))
        self.layers = stack(layers, width=width, heads=heads)
        self.norm = nn.LayerNorm(width)
        self.told = nn.Linear(width, hidden)
        self.number = nn.Parameter(torch.randn(self.dim, hidden) / self.dim**0.5)
        self.bias = nn.Parameter(0.02 * torch.randn(self.dim, hidden))
        self.net = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.head = nn.Linear(hidden, 3 * components)
        self.head.weight.data.mul_(0.1)
        self.head.bias.data.copy_(
            torch.cat([torch.zeros(components), torch.linspace(-0.5, 0.5, components),
                       torch.zeros(components)])
        )  # fmt: skip

    def log_prob(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        x = z[0].float().reshape(-1, self.dim, self.length).transpose(1, 2)  # n l e
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        h = self.entry(torch.cat([before, c[:, None].expand(-1, self.length, -1)], 2))
        h = h + self.position
        for layer in self.layers:
            h = layer(h, causal=True)
        # Scales may be finer than bf16 can tell: from here on in fp32.
        with torch.autocast(x.device.type, enabled=False):
            told = self.told(self.norm(h.float()))
            if torch.is_grad_enabled():
                return self._log_mixture(x, told)
            starts = range(0, len(x), CHUNK_CODES)
            return torch.cat(
                [
                    self._log_mixture(x[at : at + CHUNK_CODES], told[at : at + CHUNK_CODES])
                    for at in starts
                ]
            )

    def kl(self, posterior: Posterior, c: Tensor) -> None:
        return None

    def sample(
        self, num: int, c: Tensor, *, temperature: float, step: StepContext
    ) -> tuple[Tensor, ...]:
        noise = temperature * step.randn((num, *self.shape))
        share = torch.special.ndtr(noise).reshape(num, self.dim, self.length)
        caches: Caches = [None] * len(self.layers)
        x, made = noise.new_zeros(num, self.dim), []
        for at in range(self.length):
            h = self.entry(torch.cat([x, c], 1))[:, None] + self.position[at]
            h, caches = grow(self.layers, h, caches)
            known, numbers = self.told(self.norm(h[:, 0])), []
            for i in range(self.dim):
                number = quantile(share[:, i, at], *self._mixture(known + self.bias[i]))
                known = known + number[:, None] * self.number[i]
                numbers.append(number)
            x = torch.stack(numbers, 1)
            made.append(x)
        return (torch.stack(made, 2).reshape(num, *self.shape),)

    def _log_mixture(self, x: Tensor, told: Tensor) -> Tensor:
        """Log density `(N, 1)` of `x` `(N, L, E)`, given what the transformer says, `(N, L, H)`."""
        terms = x[..., None] * self.number  # n l e h
        before = F.pad(terms[:, :, :-1].cumsum(2), (0, 0, 1, 0))
        log_weight, mean, log_scale = self._mixture(told[:, :, None] + before + self.bias)
        square = ((x[..., None] - mean) * torch.exp(-log_scale)).square()
        each = log_weight - log_scale - 0.5 * (square + math.log(2 * math.pi))
        return torch.logsumexp(each, 3).flatten(1).sum(1, keepdim=True)

    def _mixture(self, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and log scales `(…, M)`, in fp32; scales stay within e^±5."""
        log_weight, mean, log_scale = self.head(self.net(known)).float().chunk(3, -1)
        return log_weight.log_softmax(-1), mean, 5 * torch.tanh(log_scale / 5)


def quantile(
    share: Tensor, log_weight: Tensor, mean: Tensor, log_scale: Tensor, *, halvings: int = 30
) -> Tensor:
    """Where mixtures of Gaussians, `(N, M)`, reach a cumulative probability `(N,)`: by bisection.

    Noise maps to numbers without jumps, so that a prior made of this is a flow.
    """
    share = share.clamp(1e-6, 1 - 1e-6)
    reach = 5.5 * torch.exp(log_scale)
    low, high = (mean - reach).amin(1), (mean + reach).amax(1)
    for _ in range(halvings):
        middle = (low + high) / 2
        inner = torch.special.ndtr((middle[:, None] - mean) * torch.exp(-log_scale))
        below = (torch.exp(log_weight) * inner).sum(1) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


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
