"""What the commands write: sounds and spectrograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ae_audio.dsp.sound import Sound


def write(sounds: Sequence[Sound], path: Path, *, named: bool = True) -> None:
    """Writes sounds one after the other, whole or not at all.

    Args:
        sounds: of which the first one's rate is used.
        path: where to.
        named: whether the user named this very file, not only its folder.
    """
    from ae_audio.dsp.sound import write_sounds
    from ae_toolkit.files import writing

    with writing(path, named=named) as temporary:
        write_sounds(sounds, temporary)


def write_each(sounds: Sequence[Sound], folder: Path, *, stem: str) -> None:
    """Writes every sound as a file of its own."""
    for i, sound in enumerate(sounds):
        write([sound], folder / f"{stem}-{i:02}.wav", named=False)


def draw(rows: Mapping[str, Sequence[Sound]], path: Path) -> None:
    """Draws named rows of spectrograms."""
    from ae_audio.figures import spectrogram_figure

    spectrogram_figure(rows, path)


def heard(sound: Sound) -> Sound:
    """What a model takes of a sound: its first second from the onset."""
    from ae_audio.dsp import spectrum
    from ae_audio.dsp.sound import Sound
    from ae_audio.modality import align_note

    samples = align_note(sound).samples[: spectrum.num_samples(spectrum.NUM_FRAMES)]
    return Sound(samples, spectrum.SAMPLE_RATE, sound.name)


def titled(sound: Sound, name: str) -> Sound:
    """The same sound under another name, as a figure has it."""
    return replace(sound, name=name)
