"""MIDI to sound: by FluidSynth, a program, or without it by pretty_midi as plain tones."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ae_toolkit import RunError, UsageError
from ae_toolkit.files import RESULT_SIGNATURE, check_input, writing

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI

Audio = NDArray[np.float32]

MAX_MINUTES = 60
TARGET_PEAK = 10 ** (-1 / 20)  #: one decibel below full scale
SILENT_PEAK = 1e-4  #: what stays below it is neither heard nor made louder
HARMONIC_LEVELS = (1.0, 0.4, 0.25, 0.1, 0.05)  #: of the plain tones, the fundamental first
SOUND_SUBTYPES = {".wav": "PCM_16", ".flac": "PCM_16", ".ogg": "VORBIS"}


def render(
    midi: PrettyMIDI, *, soundfont: Path | None = None, rate: int = 44100
) -> tuple[Audio, str | None]:
    """Plays a piece.

    Args:
        midi: at most an hour long.
        soundfont: the instruments, an .sf2 or .sf3 file; None: those that come with pretty_midi.
        rate: samples per second.

    Returns:
        Samples, `(N, 2)` or of plain tones `(N,)`, and a sentence that says why they are plain
        and how to get better ones.

    Raises:
        UsageError: there is no such soundfont.
        RunError: the piece is too long, the soundfont is none, or FluidSynth failed.
    """
    check_duration(midi)
    if soundfont is not None:
        _check_soundfont(soundfont)
    program, soundfont = shutil.which("fluidsynth"), soundfont or _shipped_soundfont()
    if program and soundfont:
        return _play(midi, program, soundfont, rate=rate), None
    missing = (
        "pretty_midi came without a soundfont, choose one (.sf2)"
        if program
        else "FluidSynth is missing, install it (apt install fluidsynth, brew install fluid-synth)"
    )
    return _plain(midi, rate=rate), f"{missing} to hear instruments instead of plain tones"


def check_duration(midi: PrettyMIDI, *, subject: str = "the piece") -> None:
    """Refuses a piece that is too long to be made into sound.

    Args:
        midi: the piece.
        subject: begins the sentence, such as `tune.mid:`.

    Raises:
        RunError: it is longer than an hour.
    """
    length = midi.get_end_time()
    if length > 60 * MAX_MINUTES:
        raise RunError(
            f"{subject} lasts {length / 60:.1f} minutes, and more than {MAX_MINUTES} are not "
            f"made into sound"
        )


def write_wav(audio: Audio, path: Path, *, rate: int, named: bool = True) -> None:
    """Writes samples, as loud as they can be, in the format of the ending.

    Args:
        audio: `(N,)`, or `(N, channels)`.
        path: ends in .wav, .flac or .ogg.
        rate: samples per second.
        named: whether the user named this very file.

    Raises:
        UsageError: it ends in something else.
        RunError: the place cannot be written.
    """
    import soundfile

    subtype = SOUND_SUBTYPES.get(path.suffix.lower())
    if subtype is None:
        raise UsageError(f"{path}: choose a name that ends in .wav, .flac or .ogg")
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    with writing(path, named=named) as temporary:
        try:
            with soundfile.SoundFile(temporary, "w", rate, channels, subtype) as file:
                file.software = RESULT_SIGNATURE
                loud = _normalised(audio)
                for at in range(0, len(loud), rate):  # the encoder of Ogg takes no hour at once
                    file.write(loud[at : at + rate])
        except soundfile.LibsndfileError as error:
            said = error.error_string.rstrip(".")
            raise RunError(f"{path}: cannot be written, {said}; is the disk full?") from None


def _normalised(audio: Audio) -> Audio:
    peak = max(float(audio.max(initial=0)), -float(audio.min(initial=0)))
    return (audio * np.float32(TARGET_PEAK / peak)).clip(-1, 1) if peak > SILENT_PEAK else audio


def _shipped_soundfont() -> Path | None:
    import pretty_midi

    path = Path(pretty_midi.__file__).parent / "TimGM6mb.sf2"
    return path if path.is_file() else None


def _check_soundfont(path: Path) -> None:
    check_input(path)
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"sfbk":
        raise RunError(f"{path}: is not a soundfont, it does not begin as an .sf2 file does")


def _play(midi: PrettyMIDI, program: str, soundfont: Path, *, rate: int) -> Audio:
    """Samples `(N, 2)` from FluidSynth."""
    import soundfile

    patience = 60 + midi.get_end_time()
    with tempfile.TemporaryDirectory() as folder:
        tune, sound = Path(folder, "tune.mid"), Path(folder, "sound.wav")
        midi.write(str(tune))
        command = [program, "-ni", "-r", str(rate), "-g", "0.6", "-T", "wav", "-O", "float"]
        try:
            done = subprocess.run(
                [*command, "-F", str(sound), str(soundfont.resolve()), str(tune)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=patience,
            )
        except subprocess.TimeoutExpired:
            raise RunError(f"FluidSynth did not end within {patience:.0f} seconds") from None
        except OSError as error:
            raise RunError(f"{program}: cannot be run, {error.strerror or error}") from error
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        wrong = [line.partition("error: ")[2] for line in said if "error: " in line]
        if done.returncode or wrong or not sound.is_file():
            said = wrong or said or [f"it returned {done.returncode}"]
            raise RunError(f"FluidSynth failed: {said[-1]}")
        audio = soundfile.read(sound, dtype="float32", always_2d=True)[0]
    heard = np.flatnonzero(np.abs(audio).max(1) > SILENT_PEAK)
    return audio[: max(int(midi.get_end_time() * rate), int(heard[-1]) if len(heard) else 0)]


def _plain(midi: PrettyMIDI, *, rate: int) -> Audio:
    """Samples `(N,)` of tones with a few harmonics; drums are silent."""

    def wave(phase: NDArray[np.float64]) -> NDArray[np.float64]:
        tones = (share * np.sin(k * phase) for k, share in enumerate(HARMONIC_LEVELS, start=1))
        return sum(tones, np.zeros_like(phase))

    return _normalised(midi.synthesize(fs=rate, wave=wave, normalize=False).astype(np.float32))
