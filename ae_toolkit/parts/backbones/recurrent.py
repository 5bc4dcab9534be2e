"""Recurrent backbones over sequences, after Roberts et al. (2018), section 3.

A bidirectional encoder, an autoregressive decoder, and a hierarchical one, in which a conductor
unrolls one embedding per segment and a lower net decodes each segment from its own; and a decoder
that knows nothing but the code. Encoder and the last take planes too, as a sequence of rows.

Their settings: `width`, W, and `layers` of a GRU, in each direction; `embed`, E, numbers that stand
for a class or value; `scheduled_sampling`, the share of own draws at the training's end, which
rises from 0.

Axes: B examples, N codes, T positions, S positions of a segment, U segments, P parameters,
W width, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import Shape, Size, flatten
from ae_toolkit.parts.backbones.layers import FeedForward
from ae_toolkit.parts.backbones.sequence import Autoregressive, Spread, Values, beside


class RecurrentEncoder(nn.Module):
    """Two GRUs, one forward and one backward; their last states are the features."""

    def __init__(
        self, *, in_shape: Shape, num_classes: int, cond_dim: int,
        width: Size = 256, layers: Size = 1, embed: Size = 64,
    ):  # fmt: skip
        super().__init__()
        self.values = Values(sequence_shape(in_shape), num_classes=num_classes, width=embed)
        self.ahead = nn.GRU(embed + cond_dim, width, layers, batch_first=True)
        self.back = nn.GRU(embed + cond_dim, width, layers, batch_first=True)
        self.out_shapes: tuple[Shape, ...] = ((2 * width,),)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        vectors = beside(self.values(x.transpose(1, 2).flatten(2) if x.dim() == 4 else x), c)
        length = vectors.shape[1]
        whole = torch.full((len(x),), length, device=x.device)
        # Rows of planes are real, all of them: a mask is of sequences.
        lengths = whole if mask is None or x.dim() == 4 else mask.sum(1)
        # Each sequence turned round within its own length; what lies behind it stays behind it.
        index = torch.arange(length, device=x.device)
        turned = torch.where(index < lengths[:, None], lengths[:, None] - 1 - index, index)
        reverse = vectors.gather(1, turned[..., None].expand_as(vectors))
        last = (lengths - 1)[:, None, None]
        states = []
        for net, sequence in ((self.ahead, vectors), (self.back, reverse)):
            out, _ = net(sequence)
            states.append(out.gather(1, last.expand(-1, 1, out.shape[2]))[:, 0])
        return (torch.cat(states, 1),)


class RecurrentDecoder(Autoregressive):
    """A GRU that is told the code at every position, beside the value before it."""

    def __init__(
        self, *, z_shapes: Sequence[Shape], out_shape: Shape, num_classes: int, cond_dim: int,
        width: Size = 256, layers: Size = 1, embed: Size = 64, scheduled_sampling: float = 0.0,
    ):  # fmt: skip
        super().__init__(
            out_shape=out_shape, num_classes=num_classes, scheduled_sampling=scheduled_sampling
        )
        self.values = Values((self.length,), num_classes=num_classes, width=embed, start=True)
        self.first = Start(z_shapes, cond_dim=cond_dim, layers=layers, width=width)
        self.entry = Spread(
            z_shapes, cond_dim=cond_dim, width=embed, length=self.length, shared=True
        )
        self.net = nn.GRU(2 * embed, width, layers, batch_first=True)
        self.head = nn.Linear(width, self.num_params)

    def teach(self, before: Tensor, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        inputs = torch.cat([self.values(before), self.entry(z, c)], 2)
        out, _ = self.net(inputs, self.first(z, c))
        return self.head(out).transpose(1, 2)

    def begin(self, z: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, Tensor]:
        return self.entry(z, c), self.first(z, c)

    def advance(
        self, before: Tensor, state: tuple[Tensor, Tensor], at: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        given, hidden = state
        inputs = torch.cat([self.values(before[:, None]), given[:, at : at + 1]], 2)
        out, hidden = self.net(inputs, hidden)
        return self.head(out[:, 0]), (given, hidden)


class HierarchicalDecoder(Autoregressive):
    """A conductor and, under it, a decoder that starts anew for every segment.

    The lower decoder knows of the rest of the piece only what its segment's embedding tells it and
    the value before, so that the code must be used (section 3.2 of the paper).

    Args:
        segment: S, positions; it divides T.
        conductor: width of the conductor; the other settings are the lower decoder's.
    """

    def __init__(
        self, *, z_shapes: Sequence[Shape], out_shape: Shape, num_classes: int, cond_dim: int,
        segment: Size = 16, conductor: Size = 256,
        width: Size = 256, layers: Size = 1, embed: Size = 64, scheduled_sampling: float = 0.0,
    ):  # fmt: skip
        super().__init__(
            out_shape=out_shape, num_classes=num_classes, scheduled_sampling=scheduled_sampling
        )
        if self.length % segment:
            raise ValueError(f"segment {segment} does not divide the {self.length} positions")
        self.segment = segment
        num_segments = self.length // segment
        self.first = Start(z_shapes, cond_dim=cond_dim, layers=1, width=conductor)
        self.entry = Spread(
            z_shapes, cond_dim=cond_dim, width=embed, length=num_segments, shared=True
        )
        self.conductor = nn.GRU(embed, conductor, batch_first=True)
        self.exit = nn.Linear(conductor, embed)
        self.values = Values((self.length,), num_classes=num_classes, width=embed, start=True)
        self.start = Start(((embed,),), cond_dim=0, layers=layers, width=width)
        self.net = nn.GRU(2 * embed, width, layers, batch_first=True)
        self.head = nn.Linear(width, self.num_params)

    def teach(self, before: Tensor, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        segments = self.begin(z, c)[0]  # n u e
        flat = segments.flatten(0, 1)
        values = self.values(before).unflatten(1, (-1, self.segment)).flatten(0, 1)
        out, _ = self.net(beside(values, flat), self.start((flat,), flat[:, :0]))
        return self.head(out).reshape(len(before), self.length, -1).transpose(1, 2)

    def begin(self, z: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings of all segments, `(N, U, E)`, and no state yet."""
        out, _ = self.conductor(self.entry(z, c), self.first(z, c))
        return torch.tanh(self.exit(out)), out.new_empty(0)

    def advance(
        self, before: Tensor, state: tuple[Tensor, Tensor], at: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        segments, hidden = state
        mine = segments[:, at // self.segment]
        if at % self.segment == 0:
            hidden = self.start((mine,), mine[:, :0])
        out, hidden = self.net(beside(self.values(before[:, None]), mine), hidden)
        return self.head(out[:, 0]), (segments, hidden)


class UnrolledDecoder(FeedForward):
    """A GRU that is told the code at every position and not what it gave before.

    The unconditioned decoder of Srivastava et al. (2015), "Unsupervised Learning of Video
    Representations using LSTMs"; in Keras, `RepeatVector` and a layer that returns sequences.
    """

    def __init__(
        self, *, z_shapes: Sequence[Shape], out_shape: Shape, num_classes: int, cond_dim: int,
        width: Size = 256, layers: Size = 1, embed: Size = 64,
    ):  # fmt: skip
        super().__init__()
        self.num_params, self.shape = out_shape[0], out_shape[1:]
        self.length, *numbers = sequence_shape(self.shape)
        self.entry = Spread(
            z_shapes, cond_dim=cond_dim, width=embed, length=self.length, shared=True
        )
        self.first = Start(z_shapes, cond_dim=cond_dim, layers=layers, width=width)
        self.net = nn.GRU(embed, width, layers, batch_first=True)
        self.head = nn.Linear(width, self.num_params * math.prod(numbers))

    def params(self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None) -> Tensor:
        out, _ = self.net(self.entry(z, c), self.first(z, c))
        rows = self.head(out).unflatten(2, (self.num_params, -1)).transpose(1, 2)  # n p t f
        if len(self.shape) < 3:
            return rows.reshape(len(rows), self.num_params, *self.shape)
        channels, height, width = self.shape
        return rows.reshape(len(rows), -1, height, channels, width).transpose(2, 3)


def sequence_shape(shape: Shape) -> Shape:
    """Planes `(C, H, W)` as H positions of C·W numbers; a sequence as it is."""
    return (shape[1], shape[0] * shape[2]) if len(shape) == 3 else shape


class Start(nn.Module):
    """Codes and conditions to the first state of a GRU, `(layers, N, W)`."""

    def __init__(self, z_shapes: Sequence[Shape], *, cond_dim: int, layers: int, width: int):
        super().__init__()
        self.layers = layers
        dim = sum(math.prod(shape) for shape in z_shapes)
        self.layer = nn.Linear(dim + cond_dim, layers * width)

    def forward(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        state = torch.tanh(self.layer(torch.cat([flatten(z), c], 1)))
        return state.reshape(len(state), self.layers, -1).transpose(0, 1).contiguous()
