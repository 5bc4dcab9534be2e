"""Priors in which every number of a code knows those before it.

Axes: N codes, L positions, E numbers of each, H hidden units, M components, K values of an integer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_toolkit.contracts import Posterior, Shape, Size, StepContext, flatten, unflatten
from ae_toolkit.parts.backbones.transformer import Caches, grow, stack

CHUNK_CODES = 250  #: codes at once, where a density of real codes is only looked at


class AutoregressiveCategorical(nn.Module):
    """A causal transformer over the integers of a code, which it learns beside the model.

    Integers carry no gradient, so that it learns from the codes and does not move them, as the
    second stage of a VQ-VAE does (van den Oord et al. 2017).

    Args:
        width: of the transformer.
        layers: of attention and a feed-forward net each.
        heads: of every attention.
        dropout: after each attention and feed-forward net.
    """

    def __init__(
        self,
        *,
        z_shapes: Sequence[Shape],
        cond_dim: int,
        num_classes: int,
        width: Size = 128,
        layers: Size = 2,
        heads: Size = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.z_shapes = tuple(z_shapes)
        self.length = sum(math.prod(shape) for shape in z_shapes)
        self.values = nn.Embedding(num_classes + 1, width)  # the last one begins a code
        self.entry = nn.Linear(width + cond_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(self.length, width))
        self.layers = stack(layers, width=width, heads=heads, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        self.head.weight.data.mul_(0.1)
        self.num_classes = num_classes

    def log_prob(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        flat = flatten(z)
        before = F.pad(flat[:, :-1], (1, 0), value=self.num_classes)
        given = c[:, None].expand(-1, self.length, -1)
        h = self.entry(torch.cat([self.values(before), given], 2)) + self.position
        for layer in self.layers:
            h = layer(h, causal=True)
        logits = self.head(self.norm(h)).float()  # n l k
        return -F.cross_entropy(logits.transpose(1, 2), flat, reduction="none")

    def kl(self, posterior: Posterior, c: Tensor) -> None:
        return None

    def sample(
        self, num: int, c: Tensor, *, temperature: float, step: StepContext
    ) -> tuple[Tensor, ...]:
        share = step.rand((num, self.length))
        caches: Caches = [None] * len(self.layers)
        value = torch.full((num, 1), self.num_classes, device=share.device)
        found: list[Tensor] = []
        for at in range(self.length):
            h = self.entry(torch.cat([self.values(value), c[:, None]], 2)) + self.position[at]
            h, caches = grow(self.layers, h, caches)
            logits = self.head(self.norm(h[:, 0])).float()
            if temperature > 0:
                reached = (logits / temperature).softmax(1).cumsum(1)
                value = torch.searchsorted(reached, share[:, at : at + 1].contiguous())
                value = value.clamp(max=self.num_classes - 1)
            else:
                value = logits.argmax(1, keepdim=True)
            found.append(value)
        return unflatten(torch.cat(found, 1), self.z_shapes)


class AutoregressivePrior(nn.Module):
    """A learned density in which every number of a code knows those before it.

    A causal transformer reads the positions of a spatial code in order, or a flat code number by
    number; within a position the numbers are modelled one after the other by a small net whose
    first layer accumulates them (RNADE, Uria et al. 2013). Each number has a mixture of Gaussians,
    so that codes may lie in clusters, as those of discrete data do. It begins near N(0, I).

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
