"""Sound to log magnitudes and back.

A note becomes the magnitudes of its short-time Fourier transform, in decibels below the loudest
bin. Phases are not kept: they are made from the magnitudes, first by letting every spectral peak
turn at its own frequency (single-pass spectrogram inversion, Beauregard et al. 2015), then by a few
steps of fast Griffin-Lim (Perraudin et al. 2013). Starting there, sixteen steps do what thirty-two
do from random phases; `scripts/measure_notes.py` compares.

Axes: B sounds, N samples, T frames, F frequency bins (the constant one is left out).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 1024
HOP_SAMPLES = 256
NUM_BINS = WINDOW_SAMPLES // 2
NUM_FRAMES = 64
RANGE_DECIBELS = 80.0  #: decibels between the loudest bin and what counts as nothing
GRIFFIN_LIM_STEPS = 16  #: of Griffin-Lim
GRIFFIN_LIM_MOMENTUM = 0.99
AT_ONCE = 16  #: sounds whose spectra fit into a cache together


def num_samples(num_frames: int) -> int:
    """How many samples so many frames stand for."""
    return (num_frames - 1) * HOP_SAMPLES


def fit_length(samples: Tensor, num_frames: int = NUM_FRAMES) -> Tensor:
    """Samples `(N,)`, cut off or followed by silence, to so many frames' length."""
    length = num_samples(num_frames)
    return torch.nn.functional.pad(samples, (0, max(length - len(samples), 0)))[:length]


def analyse(samples: Tensor) -> Tensor:
    """Samples `(B, N)` at `SAMPLE_RATE` to levels `(B, T, F)` in [0, 1], 1 the loudest bin."""
    magnitudes = transform(samples).abs()[:, 1:]
    loudest = magnitudes.amax((1, 2), keepdim=True).clamp_min(1e-9)
    decibels = 20 * torch.log10((magnitudes / loudest).clamp_min(1e-9))
    return (1 + decibels / RANGE_DECIBELS).clamp_min(0).transpose(1, 2)


def magnitudes_of(levels: Tensor) -> Tensor:
    """Levels `(B, T, F)` to magnitudes `(B, F + 1, T)`, 1 the loudest; the constant bin is 0."""
    magnitudes = 10 ** ((levels - 1) * RANGE_DECIBELS / 20)
    magnitudes = torch.where(levels > 0, magnitudes, 0).transpose(1, 2)
    return torch.cat([torch.zeros_like(magnitudes[:, :1]), magnitudes], 1)


def synthesise(levels: Tensor, *, steps: int = GRIFFIN_LIM_STEPS) -> Tensor:
    """Levels `(B, T, F)` to samples `(B, N)`, largest sample 1.

    Args:
        levels: in [0, 1], as `analyse` gives them.
        steps: of Griffin-Lim.
    """
    samples = torch.cat([_synthesise(some, steps) for some in levels.split(AT_ONCE)])
    return samples / samples.abs().amax(1, keepdim=True).clamp_min(1e-9)


def _synthesise(levels: Tensor, steps: int) -> Tensor:
    magnitudes = magnitudes_of(levels)
    complete = torch.polar(magnitudes, peak_phases(magnitudes))
    before = torch.zeros_like(complete)
    for _ in range(steps):
        consistent = transform(inverse(complete))
        wanted = torch.sub(
            consistent, before, alpha=GRIFFIN_LIM_MOMENTUM / (1 + GRIFFIN_LIM_MOMENTUM)
        )
        complete = wanted * (magnitudes / wanted.abs().clamp_min(1e-16))
        before = consistent
    return inverse(complete)


def peak_phases(magnitudes: Tensor) -> Tensor:
    """Phases `(B, F, T)` of magnitudes, every bin turning at the frequency of the nearest peak.

    The frequency of a peak is where the parabola through its logarithm and its neighbours' is
    largest; bins beside it alternate in sign, as the lobe of a centred window does.
    """
    logs = torch.log(magnitudes.clamp_min(1e-9))
    below, here, above = logs[:, :-2], logs[:, 1:-1], logs[:, 2:]
    found = (here > below) & (here >= above)
    shift = 0.5 * (below - above) / (below - 2 * here + above).clamp_max(-1e-6)
    bins = torch.arange(logs.shape[1], device=logs.device)[None, :, None].expand_as(logs)
    frequencies = bins.to(logs).clone()
    frequencies[:, 1:-1] += shift.clamp(-0.5, 0.5)
    peaks = torch.zeros_like(logs, dtype=torch.bool)
    peaks[:, 1:-1] = found
    far = 4 * logs.shape[1]
    under = torch.where(peaks, bins, -far).cummax(1).values
    over = torch.where(peaks, bins, far).flip(1).cummin(1).values.flip(1)
    nearest = torch.where(bins - under <= over - bins, under, over).clamp(0, logs.shape[1] - 1)
    turning = (2 * math.pi * HOP_SAMPLES / WINDOW_SAMPLES) * frequencies.gather(1, nearest)
    return turning.cumsum(2) + math.pi * (bins - nearest)


def stretch(levels: Tensor, num_frames: int, *, attack: int = 20) -> Tensor:
    """Levels `(B, T, F)` held longer: the attack as it is, what follows over more frames.

    Args:
        levels: of one note.
        num_frames: that are wanted; fewer cut the note off.
        attack: frames that are never stretched.
    """
    total = levels.shape[1]
    if num_frames <= total:
        return levels[:, :num_frames]
    held = torch.linspace(attack, total - 1, num_frames - attack, device=levels.device)
    low = held.floor().long()
    high = (low + 1).clamp_max(total - 1)
    share = (held - low)[None, :, None]
    rest = levels[:, low] * (1 - share) + levels[:, high] * share
    return torch.cat([levels[:, :attack], rest], 1)


def log_spectral_distance(a: Tensor, b: Tensor) -> Tensor:
    """Decibels `(B,)` between levels `(B, T, F)`: root mean square over bins, mean over frames."""
    return RANGE_DECIBELS * (a - b).square().mean(2).sqrt().mean(1)


def centroid(levels: Tensor) -> Tensor:
    """The spectral centroid `(B,)` in hertz of levels `(B, T, F)`, weighted by magnitude."""
    magnitudes = magnitudes_of(levels).sum(2)
    hertz = torch.arange(magnitudes.shape[1], device=levels.device) * (SAMPLE_RATE / WINDOW_SAMPLES)
    return (magnitudes * hertz).sum(1) / magnitudes.sum(1).clamp_min(1e-9)


def transform(samples: Tensor) -> Tensor:
    """Samples `(B, N)` to the complex spectrum `(B, F + 1, T)`."""
    return torch.stft(
        samples, WINDOW_SAMPLES, HOP_SAMPLES, window=_window(samples), return_complex=True
    )


def inverse(spectrum: Tensor) -> Tensor:
    """A complex spectrum `(B, F + 1, T)` to samples `(B, N)`."""
    length = num_samples(spectrum.shape[2])
    return torch.istft(
        spectrum, WINDOW_SAMPLES, HOP_SAMPLES, window=_window(spectrum), length=length
    )


def _window(like: Tensor) -> Tensor:
    return torch.hann_window(WINDOW_SAMPLES, device=like.device)
