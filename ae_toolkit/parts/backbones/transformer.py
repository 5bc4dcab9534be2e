"""Transformers (Vaswani et al. 2017) over sequences, in pre-norm form.

Neighbouring positions may be joined into patches, each one token. The encoder gives features
`(width, tokens)`: a spatial bottleneck keeps a code for each token, a flat one mixes them. There
are two decoders: `transformer` gives all positions at once, `autoregressive` one after the other.

Their settings: `width`, W; `layers` of attention and a feed-forward net each; `heads` of every
attention; `patch`, the positions of a token, which divides T; `embed`, numbers that stand for a
class or value; `dropout` after each attention and feed-forward net; `scheduled_sampling`, the share
of own draws at the training's end, which rises from 0.

Axes: B examples, N codes, T positions, L tokens, P parameters per position, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_toolkit.contracts import Shape, Size
from ae_toolkit.parts.backbones.layers import FeedForward
from ae_toolkit.parts.backbones.sequence import Autoregressive, Spread, Values, beside

Cache = tuple[Tensor, Tensor]  #: keys and values so far, (N, heads, L, W / heads) each
Caches = list[Cache | None]  #: of a stack of layers


class TransformerEncoder(nn.Module):
    """Patches to tokens, then layers of self-attention; what is masked is not seen."""

    def __init__(
        self, *, in_shape: Shape, num_classes: int, cond_dim: int,
        width: Size = 128, layers: Size = 2, heads: Size = 4, patch: Size = 1, embed: Size = 32,
        dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.patch, self.num_tokens = patch, count_tokens(in_shape[0], patch)
        self.values = Values(in_shape, num_classes=num_classes, width=embed)
        self.entry = nn.Linear(patch * embed + cond_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(self.num_tokens, width))
        self.layers = stack(layers, width=width, heads=heads, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.nothing = nn.Parameter(torch.zeros(width))  # the feature of a masked token
        self.out_shapes: tuple[Shape, ...] = ((width, self.num_tokens),)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        vectors = (self.values(x) * mask[..., None]).reshape(len(x), self.num_tokens, -1)
        seen = mask.reshape(len(x), self.num_tokens, self.patch).any(2)
        h = self.entry(beside(vectors, c)) + self.position
        for layer in self.layers:
            h = layer(h, mask=seen[:, None, None])
        h = torch.where(seen[..., None], self.norm(h), self.nothing)
        return (h.transpose(1, 2),)


class TransformerDecoder(FeedForward):
    """Codes to tokens, then layers of self-attention, then every parameter of a patch at once."""

    def __init__(
        self, *, z_shapes: Sequence[Shape], out_shape: Shape, num_classes: int, cond_dim: int,
        width: Size = 128, layers: Size = 2, heads: Size = 4, patch: Size = 1, embed: Size = 32,
        dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        if len(out_shape) != 2:
            raise ValueError(
                f"transformer decodes sequences of shape (positions,), not {out_shape[1:]}"
            )
        self.out_shape = out_shape
        self.patch, self.num_tokens = patch, count_tokens(out_shape[1], patch)
        self.entry = Spread(z_shapes, cond_dim=cond_dim, width=width, length=self.num_tokens)
        self.position = nn.Parameter(0.02 * torch.randn(self.num_tokens, width))
        self.layers = stack(layers, width=width, heads=heads, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.exit = nn.Linear(width, patch * embed)
        self.head = nn.Linear(embed, out_shape[0])

    def params(self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None) -> Tensor:
        h = self.entry(z, c) + self.position
        seen = None
        if mask is not None:
            seen = mask.reshape(len(h), self.num_tokens, self.patch).any(2)[:, None, None]
        for layer in self.layers:
            h = layer(h, mask=seen)
        vectors = F.gelu(self.exit(self.norm(h))).reshape(len(h), self.out_shape[1], -1)
        return self.head(vectors).transpose(1, 2)


class AutoregressiveDecoder(Autoregressive):
    """A causal transformer that is told the code at every position."""

    def __init__(
        self, *, z_shapes: Sequence[Shape], out_shape: Shape, num_classes: int, cond_dim: int,
        width: Size = 128, layers: Size = 2, heads: Size = 4, dropout: float = 0.0,
        scheduled_sampling: float = 0.0,
    ):  # fmt: skip
        super().__init__(
            out_shape=out_shape, num_classes=num_classes, scheduled_sampling=scheduled_sampling
        )
        length = self.length
        self.values = Values((length,), num_classes=num_classes, width=width, start=True)
        self.entry = Spread(z_shapes, cond_dim=cond_dim, width=width, length=length)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = stack(layers, width=width, heads=heads, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, self.num_params)

    def teach(self, before: Tensor, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        h = self.values(before) + self.entry(z, c) + self.position
        for layer in self.layers:
            h = layer(h, causal=True)
        return self.head(self.norm(h)).transpose(1, 2)

    def begin(self, z: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, Caches]:
        return self.entry(z, c) + self.position, [None] * len(self.layers)

    def advance(
        self, before: Tensor, state: tuple[Tensor, Caches], at: int
    ) -> tuple[Tensor, tuple[Tensor, Caches]]:
        given, caches = state
        h, caches = grow(self.layers, self.values(before[:, None]) + given[:, at : at + 1], caches)
        return self.head(self.norm(h[:, 0])), (given, caches)


class Layer(nn.Module):
    """`x + attention(norm(x))`, then `x + net(norm(x))`; it starts small, near the identity."""

    def __init__(self, width: int, *, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be shared out among {heads} heads")
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.net = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        for last in (self.out, self.net[-1]):
            assert isinstance(last, nn.Linear)
            last.weight.data.mul_(0.1)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """`(B, L, W)` to the same; `mask` is `(B, 1, 1, L)`, true where a token is seen."""
        queries, keys, values = self._split(x)
        seen = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal
        )
        return self._finish(x, seen)

    def grow(self, x: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """One more token `(B, 1, W)`, which sees itself and all that are in the cache."""
        queries, keys, values = self._split(x)
        if cache is not None:
            keys, values = (torch.cat(pair, 2) for pair in zip(cache, (keys, values), strict=True))
        seen = F.scaled_dot_product_attention(queries, keys, values)
        return self._finish(x, seen), (keys, values)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """`(B, L, W)` to queries, keys and values `(B, heads, L, W / heads)`."""
        parts = self.queries_keys_values(self.norm(x)).unflatten(2, (3, self.heads, -1))
        return parts.permute(2, 0, 3, 1, 4).unbind(0)

    def _finish(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.dropout(self.out(seen.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.net(x))


def stack(num: int, *, width: int, heads: int, dropout: float = 0.0) -> nn.ModuleList:
    """So many layers."""
    return nn.ModuleList(Layer(width, heads=heads, dropout=dropout) for _ in range(num))


def grow(layers: nn.ModuleList, h: Tensor, caches: Caches) -> tuple[Tensor, Caches]:
    """One more token `(B, 1, W)` through a causal stack, and the caches that now hold it too."""
    grown: Caches = []
    for layer, cache in zip(layers, caches, strict=True):
        assert isinstance(layer, Layer)
        h, new = layer.grow(h, cache)
        grown.append(new)
    return h, grown


def count_tokens(length: int, patch: int) -> int:
    """How many tokens a sequence has."""
    if length % patch:
        raise ValueError(f"patch {patch} does not divide the {length} positions")
    return length // patch
