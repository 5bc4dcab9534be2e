"""From one note to another: codes on a line, and brightness that moves evenly along it.

Halfway between two codes a sound is often duller or brighter than both ends, since harmonics that
only one of them has fade sooner than those of both. A morph is heard to move evenly where its
spectral centroid does (Caetano and Rodet 2010 guide morphs by such descriptors), so every step is
tilted by the few decibels an octave that bring its centroid between those of its ends.

Axes: S steps, T frames, F bins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ae_audio.dsp import spectrum
from ae_audio.dsp.sound import Sound

if TYPE_CHECKING:
    from ae_toolkit import Model

MAX_TILT_DECIBELS = 12.0  #: decibels an octave
NUM_HALVINGS = 24


def morph(model: Model, a: Sound, b: Sound, *, steps: int, path: str = "lerp") -> list[Sound]:
    """Sounds from the reconstruction of a to that of b, at the pitch of a.

    Args:
        model: of notes.
        a: where to begin.
        b: where to end.
        steps: sounds in all, both ends included.
        path: of the codes, `lerp` or `slerp`.
    """
    a, b = model.modality.align(a, b)
    codes, labels = model.interpolate_codes(a, b, steps=steps, path=path)
    z = torch.cat(codes)
    columns = {name: column[:1].expand(len(z)) for name, column in labels.items()}
    levels = evenly_bright(model.decode_tensor(z, columns)[:, 0].clamp(0, 1))
    return [
        model.modality.from_tensor(row[None], like=a if 2 * i < steps - 1 else b)
        for i, row in enumerate(levels)
    ]


def evenly_bright(levels: Tensor) -> Tensor:
    """Tilts steps `(S, T, F)` so that their centroids lie evenly, in octaves, between the ends'.

    The tilt of a step is found by halving, since a steeper one is always brighter.
    """
    magnitudes = spectrum.magnitudes_of(levels).sum(2)  # of the whole note, (S, F + 1)
    hertz = torch.arange(magnitudes.shape[1], device=levels.device)
    octaves = _octaves(levels)

    def centroid(slopes: Tensor) -> Tensor:
        weights = magnitudes[:, 1:] * 10 ** (slopes[:, None] * octaves / 20)
        return (weights * hertz[1:]).sum(1) / weights.sum(1).clamp_min(1e-9)

    low, high = (
        torch.full((len(levels),), sign * MAX_TILT_DECIBELS).to(levels) for sign in (-1, 1)
    )
    ends = centroid(torch.zeros_like(low))[[0, -1]].log()
    share = torch.linspace(0, 1, len(levels), device=levels.device)
    wanted = (ends[0] + (ends[1] - ends[0]) * share).exp()
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        dull = centroid(middle) < wanted
        low, high = torch.where(dull, middle, low), torch.where(dull, high, middle)
    return torch.cat([levels[:1], tilted(levels[1:-1], middle[1:-1]), levels[-1:]])


def tilted(levels: Tensor, slopes: Tensor) -> Tensor:
    """Levels `(S, T, F)`, raised by `(S,)` decibels an octave; the loudest bin stays at 1."""
    raised = levels + slopes[:, None, None] * _octaves(levels) / spectrum.RANGE_DECIBELS
    raised = raised + 1 - torch.where(levels > 0, raised, 0).amax((1, 2), keepdim=True)
    return torch.where(levels > 0, raised, 0).clamp_min(0)


def _octaves(levels: Tensor) -> Tensor:
    """Where every bin lies, in octaves from their middle, `(F,)`."""
    octaves = torch.arange(1, levels.shape[2] + 1, device=levels.device).log2()
    return octaves - octaves.mean()
