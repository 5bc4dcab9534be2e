"""Codes of integers, each of which stands for some real numbers.

Axes: B examples, N codes, Q integers at a position, L positions, K values of an integer, E numbers
that an integer stands for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import Code, Shape, Size, Sizes, StepContext, repeat
from ae_toolkit.parts.bottleneck import PriorFactory, make_heads

MAX_LEVELS = 1000  #: of a number; the outermost of more could not be reached
MAX_CLASSES = 1 << 20  #: of an integer in a code
LINEAR_RANGE = 2.0  #: ± this, tanh still has a slope
EXCESS_WEIGHT = 0.1  #: of the squares of what lies beyond, which would learn no more
DEAD_SHARE = 0.05  #: of its even share of the data, below which a vector begins anew
RESTART_PROGRESS = 0.5  #: of a training, until which vectors that nothing is near to begin anew


class VQ(nn.Module):
    """Vector quantisation: an integer stands for a vector of a codebook that is learned.

    Van den Oord et al. (2017), "Neural Discrete Representation Learning". The vectors are moving
    averages of the features that are nearest to them; one that nothing is near to begins anew as a
    feature of the batch, as all do at first (Dhariwal et al. 2020). Gradients pass the choice as if
    it were not there.

    Args:
        z_dim: Q, integers per code (per position, if spatial), each with a codebook of its own.
        spatial: keep the positions of the features instead of flattening them.
        codebook_size: K.
        code_dim: E.
        residual: an integer stands for what those before it leave of one vector (Zeghidour et al.
            2021), not for a vector beside theirs.
        commitment: the weight of the squared distance of features from their vectors.
        decay: of the moving averages, for a step.
    """

    def __init__(
        self,
        *,
        in_shapes: Sequence[Shape],
        cond_dim: int,
        prior: PriorFactory,
        z_dim: Size = 8,
        spatial: bool = False,
        codebook_size: Size = 512,
        code_dim: Size = 16,
        residual: bool = False,
        commitment: float = 0.25,
        decay: float = 0.99,
    ):
        super().__init__()
        if codebook_size < 2 or codebook_size > MAX_CLASSES:
            raise ValueError(f"codebook_size is {codebook_size}, but must be 2 to {MAX_CLASSES:,}")
        if commitment < 0 or not 0 <= decay < 1:
            raise ValueError(
                f"commitment is {commitment} and decay is {decay}, but the one cannot be negative, "
                f"and the other must be at least 0 and below 1"
            )
        self.num_classes, self.commitment = codebook_size, commitment
        vectors = 1 if residual else z_dim
        heads = make_heads(in_shapes, cond_dim, vectors, spatial=spatial, numbers=code_dim)
        self.heads = nn.ModuleList(heads)
        self.codebooks = nn.ModuleList(
            Codebook(z_dim, codebook_size, code_dim, residual=residual, decay=decay) for _ in heads
        )
        positions = [head.shape[1:] for head in heads]
        self.z_shapes: tuple[Shape, ...] = tuple((z_dim, *rest) for rest in positions)
        self.feature_shapes: tuple[Shape, ...] = tuple(
            (vectors * code_dim, *rest) for rest in positions
        )
        self.prior = prior(z_shapes=self.z_shapes, num_classes=codebook_size)

    def forward(
        self, h: tuple[Tensor, ...], c: Tensor, *, num_samples: int, step: StepContext
    ) -> Code:
        z, features = [], []
        penalty = h[0].new_zeros(len(h[0]), dtype=torch.float32)
        for x, codebook, shape in zip(self._rows(h, c), self.codebooks, self.z_shapes, strict=True):
            assert isinstance(codebook, Codebook)
            chosen = codebook(x)
            found = codebook.vectors(chosen)
            penalty = penalty + self.commitment * (x - found).square().flatten(1).sum(1)
            if self.training:
                codebook.learn(x.detach(), chosen, step)
            z.append(chosen.reshape(-1, *shape))
            features.append(self._as_features(x + (found - x).detach(), shape))
        log_prob = self.prior.log_prob(tuple(z), c).expand(num_samples, -1, -1)
        many_z, many = (tuple(repeat(t, num_samples) for t in each) for each in (z, features))
        return Code(many_z, -log_prob, penalty, many)

    def mean(self, h: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, ...]:
        rows = zip(self._rows(h, c), self.codebooks, self.z_shapes, strict=True)
        return tuple(codebook(x).reshape(-1, *shape) for x, codebook, shape in rows)

    def embed(self, z: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, ...]:
        """Integers `(N, *z_shapes[i])` to the vectors that they stand for."""
        found = []
        for level, codebook, shape in zip(z, self.codebooks, self.z_shapes, strict=True):
            assert isinstance(codebook, Codebook)
            rows = level.reshape(len(level), shape[0], -1)
            found.append(self._as_features(codebook.vectors(rows), shape))
        return tuple(found)

    def _rows(self, h: tuple[Tensor, ...], c: Tensor) -> list[Tensor]:
        """Features as what codebooks take, `(B, Q or 1, L, E)` in fp32 for every level."""
        found = []
        for head, level in zip(self.heads, h, strict=True):
            x = torch.stack(head(level, c), -1).float()  # (B, Q or 1, *positions, E)
            found.append(x.reshape(*x.shape[:2], -1, x.shape[-1]))
        return found

    @staticmethod
    def _as_features(vectors: Tensor, shape: Shape) -> Tensor:
        """`(N, Q or 1, L, E)` to `(N, Q·E, *positions)`."""
        return vectors.transpose(2, 3).flatten(1, 2).reshape(len(vectors), -1, *shape[1:])


class Codebook(nn.Module):
    """K vectors for each of Q integers, learned as the means of what is nearest to them.

    Args:
        num: Q.
        size: K.
        dim: E.
        residual: whether an integer stands for what those before it leave.
        decay: of the moving averages.
    """

    vector: Tensor
    count: Tensor

    def __init__(self, num: int, size: int, dim: int, *, residual: bool, decay: float):
        super().__init__()
        self.residual, self.decay = residual, decay
        self.register_buffer("vector", torch.randn(num, size, dim))
        self.register_buffer("count", torch.zeros(num, size))  # of features near to each

    def forward(self, x: Tensor) -> Tensor:
        """Features `(B, Q or 1, L, E)` to the nearest integers `(B, Q, L)`."""
        chosen: list[Tensor] = []
        left = x.detach()
        for i, vector in enumerate(self.vector):
            row = left[:, 0 if self.residual else i]
            # In fp32, as bf16 cannot tell near vectors apart; the square of the row is left out.
            with torch.autocast(row.device.type, enabled=False):
                distance = vector.square().sum(1) - 2 * row @ vector.T
            chosen.append(distance.argmin(2))
            if self.residual:
                left = left - vector[chosen[i]][:, None]
        return torch.stack(chosen, 1)

    def vectors(self, chosen: Tensor) -> Tensor:
        """Integers `(N, Q, L)` to what they stand for, `(N, Q or 1, L, E)`."""
        each = torch.stack([v[chosen[:, i]] for i, v in enumerate(self.vector)], 1)
        return each.sum(1, keepdim=True) if self.residual else each

    def learn(self, x: Tensor, chosen: Tensor, step: StepContext) -> None:
        """Moves the vectors towards the features `(B, Q or 1, L, E)` for which they were chosen."""
        order = step.gather(step.rand((len(x),))).argsort()
        x, chosen = step.gather(x), step.gather(chosen)
        size = self.vector.shape[1]
        place = torch.arange(size, device=x.device)
        before: Tensor | float = 0.0
        for i, (vector, count) in enumerate(zip(self.vector, self.count, strict=True)):
            rows = x[:, 0 if self.residual else i] - before  # (B, L, E)
            mine = chosen[:, i].flatten()
            if self.residual:  # before the vectors move
                before = before + vector[chosen[:, i]]
            num = rows.new_zeros(size).index_add_(0, mine, rows.new_ones(len(mine)))
            total = torch.zeros_like(vector).index_add_(0, mine, rows.flatten(0, 1))
            kept = self.decay * count
            new = kept + (1 - self.decay) * num
            mean = (kept[:, None] * vector + (1 - self.decay) * total) / new[:, None].clamp(1e-9)
            mean = torch.where(new[:, None] > 1e-9, mean, vector)  # what is never near stays
            # Some features of the batch, of as many examples as there are, in no order.
            fresh = rows[order[place % len(order)], (place // len(order)) % rows.shape[1]]
            share = len(mine) / size
            # Later, a vector that changes its meaning would be news to the prior each time.
            may_restart = (step.progress < RESTART_PROGRESS) | (count == 0)
            is_dead = (new < DEAD_SHARE * share) & may_restart
            vector.copy_(torch.where(is_dead[:, None], fresh, mean))
            count.copy_(torch.where(is_dead, share, new))


class FSQ(nn.Module):
    """Finite scalar quantisation: integers, of a codebook that need not be learned.

    Mentzer et al. (2024), "Finite Scalar Quantization: VQ-VAE Made Simple". An integer stands for a
    few numbers in [-1, 1], each squashed and rounded to one of a few values; gradients pass the
    rounding as if it were not there. What a code costs is what the prior takes to say it.

    Args:
        z_dim: integers per code (per position, if spatial), for every level or for each.
        spatial: keep the positions of the features instead of flattening them.
        num_levels: of each number how many values there are; an integer has their product.
    """

    num_levels: Tensor
    place: Tensor

    def __init__(
        self,
        *,
        in_shapes: Sequence[Shape],
        cond_dim: int,
        prior: PriorFactory,
        z_dim: Size | tuple[Size, ...] = 8,
        spatial: bool = False,
        num_levels: Sizes = (8, 5, 5, 5),
    ):
        super().__init__()
        self.num_classes = math.prod(num_levels)
        if min(num_levels) < 2 or max(num_levels) > MAX_LEVELS or self.num_classes > MAX_CLASSES:
            raise ValueError(
                f"num_levels is {list(num_levels)}, but each must be at least 2 and at most "
                f"{MAX_LEVELS:,}, and their product at most {MAX_CLASSES:,}"
            )
        heads = make_heads(in_shapes, cond_dim, z_dim, spatial=spatial, numbers=len(num_levels))
        self.heads = nn.ModuleList(heads)
        self.z_shapes: tuple[Shape, ...] = tuple(head.shape for head in heads)
        self.feature_shapes: tuple[Shape, ...] = tuple(
            (len(num_levels) * shape[0], *shape[1:]) for shape in self.z_shapes
        )
        self.prior = prior(z_shapes=self.z_shapes, num_classes=self.num_classes)
        places = [math.prod(num_levels[:i]) for i in range(len(num_levels))]
        self.register_buffer("num_levels", torch.tensor(num_levels), persistent=False)
        self.register_buffer("place", torch.tensor(places), persistent=False)

    def forward(
        self, h: tuple[Tensor, ...], c: Tensor, *, num_samples: int, step: StepContext
    ) -> Code:
        z, features, excess = self._quantise(h, c)
        log_prob = self.prior.log_prob(z, c).expand(num_samples, -1, -1)
        many_z, many = (tuple(repeat(t, num_samples) for t in each) for each in (z, features))
        return Code(many_z, -log_prob, EXCESS_WEIGHT * excess, many)

    def mean(self, h: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, ...]:
        return self._quantise(h, c)[0]

    def embed(self, z: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, ...]:
        """Integers `(N, *z_shapes[i])` to the numbers that they stand for."""
        features = []
        for level in z:
            num, place = self._axes_of(level)
            values = level[:, None] // place % num
            features.append(((values - num // 2) / (num // 2)).flatten(1, 2))
        return tuple(features)

    def _quantise(
        self, h: tuple[Tensor, ...], c: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """The integers, what they stand for with the gradient of what was given, and its excess.

        The excess `(B,)` is the sum of squares of what lies beyond ±`LINEAR_RANGE`. It is ours: the
        first large steps of a training push the numbers to where all are rounded alike.
        """
        z, features, excess = [], [], h[0].new_zeros(len(h[0]), dtype=torch.float32)
        for head, level in zip(self.heads, h, strict=True):
            x = torch.stack(head(level, c), 1).float()  # (B, len(num_levels), *z_shapes[i])
            num, place = self._axes_of(x[:, 0])
            excess = excess + torch.relu(x.abs() - LINEAR_RANGE).square().flatten(1).sum(1)
            half, middle = (num - 1) * 0.999 / 2, 0.5 * (num % 2 == 0)
            squashed = half * torch.tanh(x + torch.tan(middle / half)) - middle
            rounded = squashed.round()
            z.append(((rounded.long() + num // 2) * place).sum(1))
            features.append(((squashed + (rounded - squashed).detach()) / (num // 2)).flatten(1, 2))
        return tuple(z), tuple(features), excess

    def _axes_of(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """How many values each number has, and the weight of its place, both `(numbers, 1, …)`."""
        shape = (-1, *(1 for _ in z.shape[1:]))
        return self.num_levels.reshape(shape), self.place.reshape(shape)
