"""Hiss on notes, and off them again.

`Hiss` adds noise to log magnitudes as it would have been added to the sound: as complex numbers of
random phase. `clean` undoes it in a recording by a Wiener filter: where the model hears a note far
above the noise, the recording stays as it is, and where it hears none, nothing stays.

Axes: B notes, T frames, F bins.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ae_audio.dsp import spectrum
from ae_audio.dsp.sound import Sound, check_sound
from ae_toolkit.contracts import Shape, StepContext

if TYPE_CHECKING:
    from ae_toolkit import Model


class Hiss:
    """Adds white noise to levels, of a strength drawn anew for every note.

    Args:
        quietest: decibels of the noise in every bin, against the loudest bin of the note.
        loudest: of these.
    """

    def __init__(self, *, quietest: float = -60.0, loudest: float = -20.0):
        if not quietest <= loudest <= 0:
            raise ValueError(
                f"quietest is {quietest} and loudest {loudest}, but they are decibels up to 0, in "
                f"that order"
            )
        self.quietest, self.loudest = quietest, loudest

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def __call__(
        self, x: Tensor, y: Tensor, mask: Tensor | None, step: StepContext
    ) -> tuple[Tensor, Tensor]:
        drawn = step.rand((len(x), *(1 for _ in x.shape[1:])))
        decibels = self.quietest + (self.loudest - self.quietest) * drawn
        strength = 10 ** (decibels / 20) / 2**0.5
        magnitudes = torch.where(x > 0, 10 ** ((x - 1) * spectrum.RANGE_DECIBELS / 20), 0)
        real, imaginary = (strength * step.randn(tuple(x.shape)) for _ in range(2))
        noisy = torch.sqrt((magnitudes + real).square() + imaginary.square())
        noisy = noisy / noisy.flatten(1).amax(1).reshape(drawn.shape).clamp_min(1e-9)
        levels = 1 + 20 * torch.log10(noisy.clamp_min(1e-9)) / spectrum.RANGE_DECIBELS
        return levels.clamp_min(0), y


def clean(model: Model, sound: Sound) -> Sound:
    """A recording without its hiss, as long and as loud as it was, up to 8 kHz.

    Args:
        model: works on any length, and was trained to undo `Hiss`.
        sound: up to a minute.
    """
    found = spectrum.magnitudes_of(model.reconstruct_any_size(sound).clamp(0, 1)).square()
    samples = check_sound(sound).at(spectrum.SAMPLE_RATE).samples
    recorded = spectrum.transform(spectrum.fit_length(samples, found.shape[2])[None])
    power = recorded.abs().square()
    power = power / power.max()
    noise = power[found < power / 4]  # where the model hears no note
    # White noise has an exponential power in every bin; a missed tone does not move its median.
    strength = noise.median() / math.log(2) if len(noise) else power.new_zeros(())
    gain = found / (found + strength).clamp_min(1e-12)
    cleaned = spectrum.inverse(recorded * gain)[0, : len(samples)]
    made = Sound(cleaned, spectrum.SAMPLE_RATE).at(sound.rate).samples[: len(sound.samples)]
    missing = len(sound.samples) - len(made)
    return Sound(torch.nn.functional.pad(made, (0, missing)), sound.rate, sound.name)
