"""Backbones for notes, which know where the harmonics of a pitch lie.

A note's log magnitudes are nearly of low rank: eight spectra, faded in and out by eight envelopes,
come within two decibels of a rendered note. The decoder gives such spectra twice: as levels of the
harmonics, number by number, which is the same for every pitch, and as plain levels of frequencies.
It joins the two and silence by a soft maximum, as the magnitudes of sounds that do not overlap are
joined. The encoder is shown a note both ways. (Harmonics plus noise: Serra and Smith 1990; inside a
network, Engel et al. 2020, DDSP.)

Axes: B notes, N codes, T frames, F bins, K harmonics, R spectra, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ae_audio.dsp.pitch import hertz_of
from ae_audio.dsp.spectrum import RANGE_DECIBELS, SAMPLE_RATE, WINDOW_SAMPLES
from ae_audio.modality import NUM_PITCHES
from ae_toolkit.contracts import Shape, Size
from ae_toolkit.parts.backbones.layers import FeedForward

NUM_HARMONICS = 128  #: numbers that the decoder tells apart; 0 is what lies below the first
NUM_SEEN_HARMONICS = 64  #: of them, what the encoder is shown
SOFTNESS_LEVELS = 0.04  #: of the maximum, in levels: three decibels
LOBE_BINS = 8  #: to either side of a harmonic, that have a level of their own
PER_BIN = 4  #: steps


class NoteEncoder(nn.Module):
    """Patches of frames to vectors, all of them to one vector, then gated layers.

    Args:
        width: W.
        layers: gated residual layers.
        patch: frames that are seen at once; it divides T.
        embed: numbers for the bins of a patch, and as many for its harmonics.
        dropout: within the layers.
    """

    def __init__(
        self,
        *,
        in_shape: Shape,
        num_classes: int,
        cond_dim: int,
        width: Size = 320,
        layers: Size = 2,
        patch: Size = 4,
        embed: Size = 64,
        dropout: float = 0.0,
    ):
        super().__init__()
        frames, bins = _plane(in_shape, num_classes, cond_dim)
        if frames % patch:
            raise ValueError(f"patch is {patch}, which does not divide {frames} frames")
        self.patch = patch
        self.bins = nn.Linear(patch * bins, embed)
        self.harmonics = nn.Linear(patch * NUM_SEEN_HARMONICS, embed)
        self.entry = nn.Linear(frames // patch * 2 * embed, width)
        self.layers = gated(layers, width=width, cond_dim=cond_dim, dropout=dropout)
        self.out_shapes: tuple[Shape, ...] = ((width,),)
        self.at: Tensor
        self.register_buffer("at", _bins_of_harmonics(bins), persistent=False)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        x = x[:, 0]
        # Beyond the last bin there is nothing: one more bin, which is silent.
        index = self.at[c.argmax(1)][:, None].expand(-1, x.shape[1], -1)
        harmonics = nn.functional.pad(x, (0, 1)).gather(2, index)
        vectors = [
            layer(values.unflatten(1, (-1, self.patch)).flatten(2))  # b (l p) f -> b l (p f)
            for layer, values in ((self.bins, x), (self.harmonics, harmonics))
        ]
        h = self.entry(nn.functional.silu(torch.cat(vectors, 2)).flatten(1))
        for layer in self.layers:
            h = layer(h, c)
        return (h,)


class NoteDecoder(FeedForward):
    """Gated layers, then spectra of harmonics and of frequencies, and their envelopes.

    Args:
        width: W.
        layers: gated residual layers.
        harmonic_rank: R of the levels of harmonics.
        rank: R of the levels of frequencies.
        dropout: within the layers.
    """

    def __init__(
        self,
        *,
        z_shapes: Sequence[Shape],
        out_shape: Shape,
        num_classes: int,
        cond_dim: int,
        width: Size = 320,
        layers: Size = 2,
        harmonic_rank: int = 8,
        rank: int = 6,
        dropout: float = 0.0,
    ):
        super().__init__()
        num_params, *plane = out_shape
        if num_params != 1:
            raise ValueError(
                "note gives one number per element, which this likelihood does not take"
            )
        self.frames, bins = _plane(tuple(plane), num_classes, cond_dim)
        self.ranks = harmonic_rank, rank
        self.entry = nn.Linear(sum(math.prod(shape) for shape in z_shapes), width)
        self.layers = gated(layers, width=width, cond_dim=cond_dim, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.harmonics = nn.Linear(width, harmonic_rank * NUM_HARMONICS)
        self.spectra = nn.Linear(width, rank * bins)
        self.envelopes = nn.Linear(width, (harmonic_rank + rank) * self.frames)
        self._begin_with_tones(harmonic_rank)
        self.lobe = nn.Parameter(_lobe())
        number, distance = _nearest_harmonics(bins)
        self.number: Tensor
        self.distance: Tensor
        self.register_buffer("number", number, persistent=False)
        self.register_buffer("distance", distance, persistent=False)

    def params(self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None) -> Tensor:
        h = self.entry(torch.cat([level.flatten(1) for level in z], 1))
        for layer in self.layers:
            h = layer(h, c)
        h, pitch = self.norm(h), c.argmax(1)
        envelopes = self.envelopes(h).unflatten(1, (self.frames, -1)).split(self.ranks, 2)
        harmonics = self.harmonics(h).unflatten(1, (-1, NUM_HARMONICS))
        number = self.number[pitch][:, None].expand(-1, self.ranks[0], -1)
        tones = (
            envelopes[0] @ harmonics.gather(2, number) + self.lobe[self.distance[pitch]][:, None]
        )
        rest = envelopes[1] @ self.spectra(h).unflatten(1, (self.ranks[1], -1))
        loudest = torch.logaddexp(tones / SOFTNESS_LEVELS, rest / SOFTNESS_LEVELS)
        return SOFTNESS_LEVELS * nn.functional.softplus(loudest)[:, None, None]

    @torch.no_grad()
    def _begin_with_tones(self, rank: int) -> None:
        """Starts from harmonics at half their level; a start far below the rest never learns."""
        for head in (self.harmonics, self.spectra, self.envelopes):
            head.weight.mul_(0.2)
            head.bias.zero_()
        self.envelopes.bias.unflatten(0, (self.frames, -1))[:, :rank] = rank**-0.5
        self.harmonics.bias.fill_(0.5 * rank**-0.5)


class Gated(nn.Module):
    """`h + out(act(in(norm(h))) * gate(c))`: what the condition lets through."""

    def __init__(self, width: int, *, cond_dim: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.rise = nn.Linear(width, width)
        self.gate = nn.Linear(cond_dim, width)
        nn.init.ones_(self.gate.bias)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        inner = nn.functional.silu(self.rise(self.norm(h))) * self.gate(c)
        return h + self.out(self.dropout(inner))


def gated(num: int, *, width: int, cond_dim: int, dropout: float) -> nn.ModuleList:
    return nn.ModuleList(Gated(width, cond_dim=cond_dim, dropout=dropout) for _ in range(num))


def _plane(shape: Shape, num_classes: int, cond_dim: int) -> tuple[int, int]:
    """`(1, T, F)` to `(T, F)`."""
    if len(shape) != 3 or shape[0] != 1 or num_classes:
        raise ValueError(f"notes are real numbers of shape (1, frames, bins), not {shape}")
    if cond_dim != NUM_PITCHES:
        raise ValueError("note needs the condition 'pitch', and no other")
    return shape[1], shape[2]


def _pitches() -> Tensor:
    """Of every MIDI number, its frequency in bins, `(128, 1)`."""
    return hertz_of(torch.arange(NUM_PITCHES))[:, None] * (WINDOW_SAMPLES / SAMPLE_RATE)


def _bins_of_harmonics(bins: int) -> Tensor:
    """The bin of every harmonic of every pitch, `(128, K)`; `bins` where it is beyond the last."""
    harmonics = _pitches() * torch.arange(1, NUM_SEEN_HARMONICS + 1)
    position = harmonics.round().long() - 1  # bins begin with 1
    return torch.where(position < bins, position.clamp_min(0), bins)


def _nearest_harmonics(bins: int) -> tuple[Tensor, Tensor]:
    """Of every bin, the nearest harmonic's number and the step of its lobe, `(128, F)` each."""
    position = torch.arange(1, bins + 1) / _pitches()
    number = position.round().clamp_max(NUM_HARMONICS - 1)
    distance = (position - number).abs() * _pitches()
    return number.long(), (distance * PER_BIN).round().long().clamp_max(LOBE_BINS * PER_BIN)


def _lobe() -> Tensor:
    """The levels beside a steady tone seen through a Hann window, in steps of 1 / PER_BIN bins."""
    d = torch.arange(LOBE_BINS * PER_BIN + 1) / PER_BIN + 1e-3  # not 1: the formula is 0 / 0
    inside = torch.sinc(d) / (1 - d**2)
    beside = 1 / (math.pi * d * (d**2 - 1).clamp_min(0.5)).clamp_min(1e-6)  # of the side lobes
    magnitudes = torch.where(d < 1.8, inside.abs(), beside.clamp_max(0.05))
    return (20 / RANGE_DECIBELS) * torch.log10(magnitudes.clamp_min(1e-4))
