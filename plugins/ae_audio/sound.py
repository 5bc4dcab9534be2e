"""Sound files: read with care, written whole.

A `Sound` is mono. What cannot be a note is refused with a sentence: silence, hours, samples that
are not numbers, text that is called .wav.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from torchaudio.functional import resample

from ae_audio import SUFFIXES
from ae_toolkit import Failure, Misuse
from ae_toolkit.options import need_ending

SUBTYPES = {".wav": "PCM_16", ".flac": "PCM_16", ".ogg": "VORBIS"}
HIGHEST_RATES = {".flac": 192_000, ".ogg": 192_000}  #: samples a second that a format can hold
BLOCK = 1 << 16  #: frames that are written at once; the encoder of Ogg takes no more than minutes

MAX_SECONDS = 60.0
MIN_SECONDS = 0.02
MIN_RATE, MAX_RATE = 1_000, 1_000_000
SILENT = 10 ** (-70 / 20)  #: a peak below it is silence
PEAK = 10 ** (-1 / 20)  #: of what is made anew: one decibel below full scale
GAP = 0.25  #: seconds between sounds in one file
CLIPPED = 0.999  #: samples from here on are at full scale


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
        """The share of its samples that are at full scale, one beside the other."""
        full = self.samples.abs() >= CLIPPED
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
        if self.peak < SILENT:
            return self
        return Sound(self.samples * (peak / self.peak), self.rate, self.name)


def read_sound(path: Path | str) -> Sound:
    """Reads a WAV, FLAC or Ogg file of any rate; several channels become one.

    Raises:
        Misuse: there is no such file.
        Failure: it is no sound, or none that could be a note; the sentence says why.
    """
    path = Path(path)
    if path.is_dir():
        raise Misuse(f"{path}: is a folder, not a sound")
    if not path.is_file():
        raise Misuse(f"{path}: there is no such file")
    if path.suffix.lower() not in SUFFIXES:
        raise Misuse(f"{path}: sounds are read from files that end in {', '.join(SUFFIXES)}")
    try:
        with soundfile.SoundFile(path) as file:
            seconds = file.frames / file.samplerate
            if not MIN_RATE <= file.samplerate <= MAX_RATE:
                raise Failure(f"{path}: has {file.samplerate} samples a second, which is no sound")
            if seconds > MAX_SECONDS:
                raise Failure(
                    f"{path}: lasts {_duration(seconds)}, and a note at most {MAX_SECONDS:.0f} "
                    f"seconds; cut out the one that you mean"
                )
            # A broken header may promise any length; no more is read than a note can have.
            most = int(MAX_SECONDS * file.samplerate)
            frames = torch.from_numpy(file.read(most, dtype="float32", always_2d=True))
            rate = file.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        if isinstance(error, Failure):
            raise
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise Failure(f"{path}: is no sound file that can be read ({reason})") from error
    return check_sound(Sound(_mono(frames), rate, path.stem), where=str(path))


def check_sound(sound: Sound, *, where: str = "") -> Sound:
    """Returns a sound that can be a note.

    Raises:
        Failure: it is silent, too short, or has samples that are no numbers.
    """
    where = f"{where or sound.name or 'a sound'}: "
    if bad := int((~torch.isfinite(sound.samples)).sum()):
        raise Failure(f"{where}{bad} of its {len(sound.samples)} samples are not numbers")
    if sound.seconds < MIN_SECONDS:
        raise Failure(
            f"{where}holds {len(sound.samples)} samples, and a note at least "
            f"{1000 * MIN_SECONDS:.0f} milliseconds"
        )
    if sound.peak < SILENT:
        raise Failure(f"{where}is silent")
    return sound


def write_sounds(sounds: Sequence[Sound], path: Path | str) -> None:
    """Writes sounds one after the other, at the first one's rate; what is too loud is turned down.

    Raises:
        Misuse: the name ends in none of the endings that are written.
    """
    path = Path(path)
    need_ending(path, SUFFIXES)
    rate = min(sounds[0].rate, HIGHEST_RATES.get(path.suffix.lower(), MAX_RATE))
    gap = torch.zeros(int(GAP * rate))
    pieces = [piece for sound in sounds for piece in (sound.at(rate).samples, gap)][:-1]
    samples = torch.cat(pieces)
    samples = samples / max(float(samples.abs().max()), 1.0)
    with soundfile.SoundFile(path, "w", rate, 1, SUBTYPES[path.suffix.lower()]) as file:
        for block in samples.split(BLOCK):
            file.write(block.numpy())


def _mono(frames: Tensor) -> Tensor:
    """`(N, channels)` to `(N,)`: their mean, or the loudest where they cancel each other."""
    if frames.shape[1] == 1 or not len(frames):
        return frames[:, 0]
    mean = frames.mean(1)
    energy = frames.square().sum(0)
    if mean.square().sum() < 0.1 * energy.max():
        return frames[:, int(energy.argmax())]
    return mean


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"
