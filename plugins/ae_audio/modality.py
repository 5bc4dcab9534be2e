"""Notes as a data type: one second of sound from its onset, as log magnitudes, and its pitch.

An item is a `Sound`. Its tensor is `(1, FRAMES, BINS)`, a plane of time and frequency, as
convolutions take it. Longer sounds are cut, shorter ones end in silence. A note that is out of tune
is brought to the nearest semitone, so that harmonics lie where its label says; what is made to
resemble it is as far out of tune as it is.

Axes: B notes, T frames, F bins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torchaudio.transforms import Resample

from ae_audio import SOUND_SUFFIXES
from ae_audio.dsp import spectrum
from ae_audio.dsp.pitch import detect_pitch
from ae_audio.dsp.sound import (
    MIN_SECONDS,
    TARGET_PEAK,
    Sound,
    check_sound,
    read_sound,
    write_sounds,
)
from ae_toolkit import Modality, UsageError
from ae_toolkit.contracts import Example, Shape, StepContext

NUM_PITCHES = 128
ONSET_SHARE = 0.02  #: share of the peak at which a note begins
LEAD_SAMPLES = 80  #: samples kept before it
FADE_SAMPLES = 160  #: samples over which what is made ends
GATE_DECIBELS = 8.0  #: decibels above its median that noise seldom reaches
OVER_OCTAVES, OVER_TIME = 5, 2  #: cosines that notes are varied by


class Notes(Modality):
    """Single notes and short sounds.

    Args:
        tune: bring notes to the nearest semitone, as models need that are told the pitch.
        equalise: augmentation, decibels by which frequencies and moments are raised and lowered,
            smoothly and anew each time, as rooms, microphones and players do.
    """

    suffixes: ClassVar[tuple[str, ...]] = SOUND_SUFFIXES

    def __init__(self, *, tune: bool = True, equalise: float = 0.0):
        if equalise < 0:
            raise ValueError(f"equalise is {equalise}, but it is a strength in decibels")
        self.tune, self.equalise = tune, equalise
        self.shape = (1, spectrum.NUM_FRAMES, spectrum.NUM_BINS)
        self.labels = {"pitch": NUM_PITCHES}

    def read(self, path: Path) -> Iterator[Sound]:
        yield read_sound(path)

    def write(self, items: Sequence[Sound], path: Path) -> None:
        """One sound after the other, a moment of silence between."""
        write_sounds(items, path)

    def to_tensor(self, item: Sound) -> Example:
        """Levels as uint8, in steps of a third of a decibel, and the pitch that is heard."""
        note = align_note(item, tune=self.tune)
        levels = spectrum.analyse(spectrum.fit_length(note.samples)[None])
        return Example(_stored(levels), {"pitch": note.pitch}, "")

    def to_input(self, item: Sound, shape: Shape | None = None) -> Tensor:
        """The whole sound, where a model works on any length."""
        if shape not in (None, self.shape):
            raise UsageError(f"notes have shape {self.shape}, not {shape}")
        if shape == self.shape:
            return self.to_tensor(item).y
        samples = check_sound(item).at(spectrum.SAMPLE_RATE).samples
        frames = max(-(-len(samples) // spectrum.HOP_SAMPLES) + 1, spectrum.NUM_FRAMES)
        return _stored(spectrum.analyse(spectrum.fit_length(samples, frames)[None]))

    def prepare(self, y: Tensor) -> Tensor:
        return y.float() / 255

    def from_tensor(
        self, y: Tensor, *, like: Sound | None = None, labels: Mapping[str, float] | None = None
    ) -> Sound:
        """Made into sound; where there is an original, at its rate, as loud, and no longer."""
        samples = spectrum.synthesise(y.float().clamp(0, 1))[0]
        if like is None:
            return Sound(fade_out(samples), spectrum.SAMPLE_RATE).scaled(TARGET_PEAK)
        if self.tune:
            note = align_note(like)
            samples = retuned(samples[: len(note.samples)], note.cents)
        else:
            samples = samples[: len(like.at(spectrum.SAMPLE_RATE).samples)]
        return (
            Sound(fade_out(samples), spectrum.SAMPLE_RATE, like.name)
            .at(like.rate)
            .scaled(like.peak)
        )

    def augment(self, y: Tensor, step: StepContext) -> Tensor:
        """Each note in a room of its own, played in a way of its own."""
        if not self.equalise:
            return y
        frames, bins = y.shape[2:]
        octaves = torch.arange(1, bins + 1, device=y.device).log2() / math.log2(bins)
        time = torch.linspace(0, 1, frames, device=y.device)
        varied = y + _curves(octaves, len(y), OVER_OCTAVES, self.equalise, step)[:, None, None]
        varied += _curves(time, len(y), OVER_TIME, self.equalise, step)[:, None, :, None]
        varied += 1 - torch.where(y > 0, varied, 0).amax((1, 2, 3), keepdim=True)
        return varied.mul_(y > 0).clamp_min_(0)

    def align(self, a: Sound, b: Sound) -> tuple[Sound, Sound]:
        """Equally loud, at a's rate and tuning: nothing but the timbre changes on the way."""
        first, second = align_note(a), align_note(b)
        samples = retuned(second.samples, first.cents)
        other = Sound(samples, spectrum.SAMPLE_RATE, b.name).at(a.rate)
        return a.scaled(TARGET_PEAK), other.scaled(TARGET_PEAK)

    def metrics(self, y: Tensor, y_hat: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The log-spectral distance of the levels themselves, before they become sound."""
        distance = spectrum.log_spectral_distance(y[:, 0], y_hat[:, 0].clamp(0, 1))
        return {"level_distance": distance}

    def baselines(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The noisy note, and what a gate leaves of it: nothing below where the noise reaches."""
        if x.equal(y):
            return {}
        noise = x.flatten(1).median(1).values[:, None, None, None]  # most of a noisy note is noise
        return {
            "input": x,
            "gate": torch.where(x > noise + GATE_DECIBELS / spectrum.RANGE_DECIBELS, x, 0),
        }

    def figure(self, rows: Mapping[str, Sequence[Any]], path: Path) -> None:
        from ae_audio.figures import spectrogram_figure

        spectrogram_figure(rows, path)


class Note(NamedTuple):
    """What is heard in a sound.

    Attributes:
        samples: `(N,)` at the models' rate, from the onset on, in tune; a second and a little more.
        pitch: the nearest MIDI number.
        cents: how far above it the sound was, in hundredths of a semitone.
        clarity: how periodic it is, from 0, where nobody hears a pitch, to 1.
    """

    samples: Tensor
    pitch: int
    cents: float
    clarity: float


def align_note(sound: Sound, *, tune: bool = True) -> Note:
    """Finds the onset and the pitch of a sound, and brings it into tune or leaves it.

    Raises:
        RunError: it is silent, too short, or has samples that are no numbers.
    """
    samples = check_sound(sound).at(spectrum.SAMPLE_RATE).samples
    loud = (samples.abs() >= ONSET_SHARE * samples.abs().max()).nonzero()
    latest = len(samples) - int(MIN_SECONDS * spectrum.SAMPLE_RATE)  # a click at the very end
    start = max(min(int(loud[0]) - LEAD_SAMPLES, latest), 0)
    samples = samples[start : start + spectrum.num_samples(spectrum.NUM_FRAMES + 2)]
    heard = detect_pitch(samples[None])
    number = float(heard.number.clamp(0, NUM_PITCHES - 1))
    pitch = round(number)
    cents = 100 * (number - pitch)
    tuned = retuned(samples, -cents) if tune else samples
    return Note(tuned, pitch, cents, float(heard.clarity))


def _curves(place: Tensor, num: int, waves: int, decibels: float, step: StepContext) -> Tensor:
    """Sums of cosines at places `(P,)` in [0, 1], in levels, drawn anew for each of `(num, P)`."""
    cosines = torch.cos(math.pi * torch.arange(1, waves + 1, device=place.device)[:, None] * place)
    return step.randn((num, waves)) * (decibels / spectrum.RANGE_DECIBELS) @ cosines


def retuned(samples: Tensor, cents: float) -> Tensor:
    """Samples `(N,)` played so much higher, and therefore shorter; in steps of four cents."""
    steps = round(cents / 4)
    tuned: Tensor = _resampler(steps)(samples) if steps else samples
    return tuned


def fade_out(samples: Tensor) -> Tensor:
    """Samples `(N,)` that end without a click."""
    fade = min(FADE_SAMPLES, len(samples))
    return torch.cat([samples[:-fade], samples[-fade:] * torch.linspace(1, 0, fade)])


@cache
def _resampler(steps: int) -> Resample:
    ratio = Fraction(2 ** (4 * steps / 1200)).limit_denominator(500)
    return Resample(ratio.numerator, ratio.denominator)


def _stored(levels: Tensor) -> Tensor:
    return (255 * levels).round().to(torch.uint8)
