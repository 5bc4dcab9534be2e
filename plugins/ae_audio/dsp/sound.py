"""Sound files: read with care, written whole.

A `Sound` is mono. What cannot be a note is refused with a sentence: silence, hours, samples that
are not numbers, text that is called .wav.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from torchaudio.functional import resample

from ae_audio import SOUND_SUFFIXES
from ae_toolkit import RunError, UsageError
from ae_toolkit.cli.options import need_ending
from ae_toolkit.files import RESULT_SIGNATURE, check_input

SOUND_SUBTYPES = {".wav": "PCM_16", ".flac": "PCM_16", ".ogg": "VORBIS"}
HIGHEST_RATES = {".flac": 192_000, ".ogg": 192_000}  #: samples a second that a format can hold
BLOCK_FRAMES = 1 << 16  #: read or written at once; the encoder of Ogg takes few at a time

MAX_SECONDS = 60.0
MIN_SECONDS = 0.02
MIN_RATE, MAX_RATE = 1_000, 384_000
MAX_SAMPLES = 100_000_000  #: of all channels of a file, of which a few kilobytes can hold as many
SILENT_PEAK = 10 ** (-70 / 20)  #: a peak below it is silence
MAX_PEAK = 1e10  #: the square of a sum of louder samples is beyond single precision
TARGET_PEAK = 10 ** (-1 / 20)  #: of what is made anew: one decibel below full scale
GAP_SECONDS = 0.25  #: seconds between sounds in one file
CLIPPED_LEVEL = 0.999  #: samples from here on are at full scale


@dataclass(frozen=True, eq=False)
class Sound:
    """A mono sound.

    Attributes:
        samples: `(N,)` float32, full scale is ±1.
        rate: samples per second.
        name: what it is called in messages.
    """

    samples: Tensor
    rate: int
    name: str = ""

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    @property
    def peak(self) -> float:
        return float(self.samples.abs().max())

    @property
    def clipped(self) -> float:
        """The share of its samples that are at full scale, one beside the other.

        What goes beyond full scale was not clipped there.
        """
        if self.peak > 1:
            return 0.0
        full = self.samples.abs() >= CLIPPED_LEVEL
        return float((full[1:] & full[:-1]).float().mean())

    def at(self, rate: int) -> Sound:
        """The same sound with another number of samples per second.

        Odd ratios are rounded by less than a hundredth of a per cent, far below what can be heard:
        the filter of an exact one may be larger than memory.
        """
        if rate == self.rate:
            return self
        low, high = sorted((self.rate, rate))
        ratio = Fraction(high, low).limit_denominator(640)
        steps = ratio.numerator, ratio.denominator
        old, new = steps if self.rate == high else steps[::-1]
        samples = resample(self.samples, old, new)
        return Sound(samples, rate, self.name)

    def scaled(self, peak: float) -> Sound:
        """The same sound, its largest sample `peak`; silence stays silence."""
        if self.peak < SILENT_PEAK:
            return self
        return Sound(self.samples * (peak / self.peak), self.rate, self.name)


def read_sound(path: Path | str) -> Sound:
    """Reads a WAV, FLAC or Ogg file of any rate; several channels become one.

    Raises:
        UsageError: there is no such file.
        RunError: it is no sound, or none that could be a note; the sentence says why.
    """
    path = Path(path)
    check_input(path)
    if path.suffix.lower() not in SOUND_SUFFIXES:
        raise UsageError(
            f"{path}: sounds are read from files that end in {', '.join(SOUND_SUFFIXES)}"
        )
    try:
        with path.open("rb") as opened, soundfile.SoundFile(opened) as file:
            _check_header(file, where=f"{path}: ")
            sound = Sound(_read_mono(file), file.samplerate, path.stem)
    except OSError as error:
        raise RunError(f"{path}: cannot be read, {error.strerror or error}") from None
    except (soundfile.LibsndfileError, RuntimeError) as error:
        if isinstance(error, RunError):
            raise
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise RunError(f"{path}: is no sound file that can be read ({reason})") from error
    return check_sound(sound, where=str(path))


def check_sound(sound: Sound, *, where: str = "") -> Sound:
    """Returns a sound that can be a note.

    Raises:
        RunError: it is silent, too loud, too short, or has samples that are no finite numbers.
    """
    where = f"{where or sound.name or 'a sound'}: "
    if bad := int((~torch.isfinite(sound.samples)).sum()):
        raise RunError(f"{where}{bad} of its {len(sound.samples)} samples are not finite numbers")
    if sound.seconds < MIN_SECONDS:
        raise RunError(
            f"{where}holds {len(sound.samples)} samples, and a note at least "
            f"{1000 * MIN_SECONDS:.0f} milliseconds"
        )
    if sound.peak < SILENT_PEAK:
        raise RunError(f"{where}is silent")
    if sound.peak > MAX_PEAK:
        raise RunError(
            f"{where}its samples reach {sound.peak:.2g}, and full scale is 1; divide them by that"
        )
    return sound


def write_sounds(sounds: Sequence[Sound], path: Path | str) -> None:
    """Writes sounds one after the other, at the first one's rate; what is too loud is turned down.

    Raises:
        UsageError: the name ends in none of the endings that are written.
    """
    path = Path(path)
    need_ending(path, SOUND_SUFFIXES)
    rate = min(sounds[0].rate, HIGHEST_RATES.get(path.suffix.lower(), MAX_RATE))
    gap = torch.zeros(int(GAP_SECONDS * rate))
    pieces = [piece for sound in sounds for piece in (sound.at(rate).samples, gap)][:-1]
    samples = torch.cat(pieces)
    samples = samples / max(float(samples.abs().max()), 1.0)
    ending, encoded = path.suffix.lower(), BytesIO()
    format = ending[1:].upper()
    with soundfile.SoundFile(encoded, "w", rate, 1, SOUND_SUBTYPES[ending], format=format) as file:
        file.software = RESULT_SIGNATURE
        for block in samples.split(BLOCK_FRAMES):
            file.write(block.numpy())
    path.write_bytes(encoded.getbuffer())


def _check_header(file: soundfile.SoundFile, *, where: str) -> None:
    """Refuses by what a file promises, before any of it is decoded.

    Raises:
        RunError: it is no sound, or too long for a note.
    """
    rate, seconds = file.samplerate, file.frames / file.samplerate
    if not MIN_RATE <= rate <= MAX_RATE:
        raise RunError(
            f"{where}has {rate:,} samples a second, and sounds of {MIN_RATE:,} to {MAX_RATE:,} "
            f"are read; convert it to another rate first"
        )
    if seconds > MAX_SECONDS:
        raise RunError(
            f"{where}lasts {_duration(seconds)}, and a note at most {MAX_SECONDS:.0f} seconds; "
            f"cut out the one that you mean"
        )
    if file.frames * file.channels > MAX_SAMPLES:
        raise RunError(
            f"{where}holds {file.frames * file.channels / 1e6:,.0f} million samples in "
            f"{file.channels} channels, and at most {MAX_SAMPLES / 1e6:.0f} million are read; "
            f"convert it to mono first"
        )


def _read_mono(file: soundfile.SoundFile) -> Tensor:
    """Samples `(N,)`, block by block: the mean of the channels, or the loudest if they cancel."""
    samples, energy, num = torch.empty(file.frames), torch.zeros(file.channels), 0
    for block in _blocks(file):
        samples[num : num + len(block)] = block.mean(1)
        energy += block.square().sum(0)
        num += len(block)
    samples = samples[:num]
    if file.seekable() and samples.dot(samples) < 0.1 * energy.max():
        file.seek(0)
        loudest = int(energy.argmax())
        torch.cat([block[:, loudest] for block in _blocks(file)], out=samples)
    return samples


def _blocks(file: soundfile.SoundFile) -> Iterator[Tensor]:
    """The rest of a file as `(BLOCK_FRAMES, channels)`, or shorter at the end."""
    left = file.frames  # at most: a broken header promises more than there is
    while len(block := file.read(min(BLOCK_FRAMES, left), dtype="float32", always_2d=True)):
        yield torch.from_numpy(block)
        left -= len(block)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"
