"""A melody sung in a timbre: every note of a MIDI file decoded at its pitch, as long as it lasts.

A timbre is a code, wherever it comes from: of a recorded note, of a blend of two, or of the prior.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ae_audio.dsp import spectrum
from ae_audio.dsp.sound import TARGET_PEAK, Sound
from ae_toolkit import RunError
from ae_toolkit.console import track
from ae_toolkit.errors import describe_error
from ae_toolkit.files import check_input

if TYPE_CHECKING:
    from ae_toolkit import Model

RELEASE_SECONDS = 0.05  #: seconds in which a note dies away after its end
MIN_NOTE_SECONDS = 0.08  #: seconds, of a note that can be heard as one
MAX_NOTE_SECONDS = 30.0  #: seconds for which a note is held
MAX_MINUTES = 20
MAX_BYTES = 1 << 20  #: of a MIDI file, which is read in seconds
MIN_PITCH, MAX_PITCH = 36, 96  #: that notes are rendered at; others are moved there by octaves


class Tone(NamedTuple):
    """A note of a melody: seconds, a MIDI number and a loudness in [0, 1]."""

    start: float
    end: float
    pitch: int
    loudness: float


def read_melody(path: Path) -> list[Tone]:
    """The notes of a MIDI file, drums left out.

    Raises:
        UsageError: there is no such file.
        RunError: it is no MIDI file, holds no notes, or is too large or too long.
    """
    import pretty_midi

    check_input(path, max_bytes=MAX_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about meters in odd tracks, which are not sung
            midi = pretty_midi.PrettyMIDI(str(path))
    except Exception as error:  # the reader raises half a dozen kinds for a file that is none
        raise RunError(
            f"{path}: is no MIDI file that can be read ({describe_error(error)})"
        ) from error
    tones = [
        Tone(note.start, note.end, note.pitch, note.velocity / 127)
        for instrument in midi.instruments
        if not instrument.is_drum
        for note in instrument.notes
    ]
    if not tones:
        drums = " but drums" if any(i.is_drum and i.notes for i in midi.instruments) else ""
        raise RunError(f"{path}: holds no notes{drums}")
    length = max(tone.end for tone in tones)
    if length > 60 * MAX_MINUTES:
        raise RunError(f"{path}: lasts {length / 60:.0f} minutes, and a song at most {MAX_MINUTES}")
    return sorted(tones)


def sing(model: Model, tones: Sequence[Tone], code: Tensor) -> Sound:
    """Notes in the timbre of a code.

    Args:
        model: of notes, conditioned on the pitch.
        tones: in order.
        code: `(D,)`.
    """
    pitches = sorted({within(tone.pitch) for tone in tones})
    labels = {"pitch": torch.tensor(pitches)}
    levels = model.decode_tensor(code.expand(len(pitches), -1), labels)[:, 0].clamp(0, 1)
    spectra = dict(zip(pitches, levels, strict=True))
    end = max(tone.end for tone in tones)
    song = torch.zeros(round((end + RELEASE_SECONDS + 0.1) * spectrum.SAMPLE_RATE))
    known: dict[tuple[int, int], Tensor] = {}
    for tone in track(tones, "singing", unit="notes"):
        sung = min(max(tone.end - tone.start, MIN_NOTE_SECONDS), MAX_NOTE_SECONDS)
        seconds = sung + RELEASE_SECONDS
        frames = int(seconds * spectrum.SAMPLE_RATE / spectrum.HOP_SAMPLES) + 2
        key = within(tone.pitch), frames
        if key not in known:
            held = spectrum.stretch(spectra[key[0]][None], frames)
            known[key] = _ended(spectrum.synthesise(held)[0], seconds)
        start = round(tone.start * spectrum.SAMPLE_RATE)
        note = known[key][: len(song) - start]
        song[start : start + len(note)] += tone.loudness * note
    return Sound(song, spectrum.SAMPLE_RATE).scaled(TARGET_PEAK)


def within(pitch: int) -> int:
    """A pitch, moved by octaves to where notes are known."""
    while pitch < MIN_PITCH:
        pitch += 12
    while pitch > MAX_PITCH:
        pitch -= 12
    return pitch


def moved(tones: Sequence[Tone]) -> int:
    """How many notes are sung in another octave than is written."""
    return sum(within(tone.pitch) != tone.pitch for tone in tones)


def _ended(samples: Tensor, seconds: float) -> Tensor:
    """Samples `(N,)` that die away over the last moment of so many seconds."""
    samples = samples[: round(seconds * spectrum.SAMPLE_RATE)]
    fade = min(round(RELEASE_SECONDS * spectrum.SAMPLE_RATE), len(samples))
    return torch.cat([samples[:-fade], samples[-fade:] * torch.linspace(1, 0, fade).square()])
