"""Which pitch a note has: found by YIN (de Cheveigné and Kawahara 2002), and written as A4.

What YIN finds is refined to a few cents by where the harmonics stand, as far up as they are heard.

torchaudio's `detect_pitch_frequency` is right within 50 cents on 35% of rendered notes, this on 87%
(97% but for the octave: organs and bells do sound in another than is written);
`scripts/measure_notes.py FOLDER --num 300` compares.

Axes: B sounds, N samples, W windows, L lags.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from ae_audio.dsp.spectrum import SAMPLE_RATE
from ae_toolkit import UsageError

MIN_HERTZ, MAX_HERTZ = 30.0, 2500.0  #: hertz
WINDOW_SAMPLES, HOP_SAMPLES = 2048, 1024
DIP_THRESHOLD = 0.2  #: the first dip below it is the period

FINE_SAMPLES = 1 << 15  #: samples of the transform that a pitch is refined by
NUM_HARMONICS = 16
SEARCH_CENTS = 40  #: to either side of what YIN finds
MIN_FINE_SAMPLES = 1600  #: samples whose harmonics stand apart enough for that
AUDIBLE_DECIBELS = 60.0  #: decibels below the strongest harmonic at which one is no longer counted

PITCH_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


class Pitch(NamedTuple):
    """What is heard, `(B,)` each: MIDI numbers with fractions, and clarities from 0 to 1."""

    number: Tensor
    clarity: Tensor


def find_pitch(samples: Tensor) -> Tensor:
    """The pitch of samples `(B, N)` at `SAMPLE_RATE`, `(B,)` as MIDI numbers with fractions."""
    return detect_pitch(samples).number


def detect_pitch(samples: Tensor) -> Pitch:
    """The pitch of samples `(B, N)` at `SAMPLE_RATE`, and how clearly they have one.

    A median over windows, each counting for its energy and for how periodic it is.
    """
    num = samples.shape[1]
    longest = int(SAMPLE_RATE / MIN_HERTZ) + 2
    shortest = int(SAMPLE_RATE / MAX_HERTZ)
    missing = WINDOW_SAMPLES + longest - num
    if missing > 0:
        samples = torch.nn.functional.pad(samples, (0, missing))
    windows = samples.unfold(1, WINDOW_SAMPLES + longest, HOP_SAMPLES)
    dips = _normalised_difference(windows, longest)
    inside = dips[..., shortest:-1]
    lowest = (inside <= dips[..., shortest - 1 : -2]) & (inside < dips[..., shortest + 1 :])
    good = lowest & (inside < DIP_THRESHOLD)
    first = good.float().argmax(-1)
    deepest = torch.where(lowest, inside, 2 + inside).argmin(-1)  # no dip at all: the lowest place
    lag = torch.where(good.any(-1), first, deepest) + shortest
    before, here, after = (dips.gather(-1, (lag + o)[..., None])[..., 0] for o in (-1, 0, 1))
    shift = (before - after) / (2 * (before - 2 * here + after).clamp_min(1e-9))
    hertz = SAMPLE_RATE / (lag + shift.clamp(-0.5, 0.5))
    energy = windows[..., :WINDOW_SAMPLES].square().sum(-1)
    periodic = (1 - here).clamp(0, 1)
    number = _weighted_median(69 + 12 * torch.log2(hertz / 440), energy * periodic.square())
    clarity = (energy * periodic).sum(-1) / energy.sum(-1).clamp_min(1e-9)
    return Pitch(_refined(samples, number) if num >= MIN_FINE_SAMPLES else number, clarity)


def hertz_of(pitch: Tensor | float) -> Tensor:
    """The frequency of MIDI numbers, equally tempered, A4 = 440 Hz."""
    return 440 * 2 ** ((torch.as_tensor(pitch) - 69) / 12)


def parse_pitch(text: str) -> int:
    """Reads A4, c#3, Bb2 or a MIDI number, 60 being C4.

    Raises:
        UsageError: it is none of them.
    """
    if text.isdecimal() and int(text) < 128:
        return int(text)
    match = re.fullmatch(r"([A-Ga-g])([#b]?)(-?\d)", text)
    if match is None:
        raise UsageError(f"{text!r} is no pitch: write A4, C#3, Bb2, or a MIDI number such as 60")
    letter, accidental, octave = match.groups()
    step = PITCH_NAMES.index(letter.upper()) + {"": 0, "#": 1, "b": -1}[accidental]
    number = 12 * (int(octave) + 1) + step
    if not 0 <= number < 128:
        raise UsageError(f"{text!r} is beyond the keyboard, which goes from C-1 to G9")
    return number


def pitch_name(number: int) -> str:
    """60 is C4."""
    return f"{PITCH_NAMES[number % 12]}{number // 12 - 1}"


def _normalised_difference(windows: Tensor, longest: int) -> Tensor:
    """YIN's d', `(B, W, L)`, equations 6 and 8."""
    size = 1 << (windows.shape[-1] + WINDOW_SAMPLES).bit_length()
    spectrum = torch.fft.rfft(windows, size)
    first = torch.fft.rfft(windows[..., :WINDOW_SAMPLES], size)
    correlation = torch.fft.irfft(spectrum * first.conj(), size)[..., :longest]
    sums = torch.nn.functional.pad(windows.double().square().cumsum(-1), (1, 0))
    energy = (sums[..., WINDOW_SAMPLES : WINDOW_SAMPLES + longest] - sums[..., :longest]).float()
    difference = (energy[..., :1] + energy - 2 * correlation).clamp_min(0)
    lags = torch.arange(longest, device=windows.device)
    normalised = difference * lags / difference.cumsum(-1).clamp_min(1e-9)
    normalised[..., 0] = 1
    return normalised


def _refined(samples: Tensor, pitch: Tensor) -> Tensor:
    """Pitches `(B,)`, moved by some cents to where the harmonics of `(B, N)` are strongest."""
    samples = samples[:, :FINE_SAMPLES]
    window = torch.hann_window(samples.shape[1], device=samples.device)
    levels = 20 * torch.log10(torch.fft.rfft(samples * window, FINE_SAMPLES).abs().clamp_min(1e-9))
    cents = torch.arange(-SEARCH_CENTS, SEARCH_CENTS + 1, device=samples.device)
    cents = cents[cents.abs().argsort(stable=True)]  # of equals, the nearest
    numbers = torch.arange(1, NUM_HARMONICS + 1, device=samples.device)
    hertz = hertz_of(pitch[:, None] + cents / 100)[..., None] * numbers  # b cents harmonics
    bins = (hertz * (FINE_SAMPLES / SAMPLE_RATE)).round().long()
    inside = bins < levels.shape[1]
    found = levels.gather(1, bins.clamp_max(levels.shape[1] - 1).flatten(1)).reshape(bins.shape)
    found = torch.where(inside, found, -torch.inf)
    heard = (found - found.amax((1, 2), keepdim=True) + AUDIBLE_DECIBELS).clamp_min(0)
    best = heard.sum(2).argmax(1)
    return pitch + cents[best] / 100


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """`(B, W)` each to `(B,)`."""
    ordered, index = values.sort(-1)
    total = weights.gather(-1, index).cumsum(-1)
    middle = (total < total[..., -1:] / 2).sum(-1, keepdim=True).clamp_max(values.shape[-1] - 1)
    return ordered.gather(-1, middle)[..., 0]
