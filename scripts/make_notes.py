"""Renders single notes of General MIDI instruments: `python scripts/make_notes.py FOLDER`.

FluidSynth plays every melodic program (the first 112), every semitone from C2 to C7 and several
velocities, by the soundfont that comes with pretty_midi. One file a note, one second long, 16 kHz,
named as NSynth names its notes: `flute_073-060-100.wav` is instrument, pitch and velocity. Where an
instrument is silent at a pitch there is no file.

With `--samples`, it makes those that ship with the package instead, by a soundfont under the MIT
licence: `python scripts/make_notes.py --samples --soundfont /usr/share/sounds/sf2/FluidR3_GM.sf2`.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click
import pretty_midi
import soundfile
import torch
from torch import Tensor
from torchaudio.functional import resample

from ae_toolkit.console import track
from ae_toolkit.files import writing

SAMPLES = Path(__file__).parents[1] / "plugins/ae_audio/samples"

RATE = 16_000
RENDERED = 48_000  #: FluidSynth aliases where it renders below the rate of its samples
SPACING = 1.25  #: seconds from note to note; what still sounds is cut off before the next
SILENT = 1e-3

PROGRAMS = range(112)  #: without percussion and sound effects
PITCHES = range(36, 97)
VELOCITIES = (45, 80, 115)

#: Notes that ship under a name: program and pitch.
NAMED = {
    "piano": (0, 69),
    "organ": (19, 69),
    "guitar": (24, 69),
    "violin": (40, 69),
    "cello": (42, 57),
    "trumpet": (56, 69),
    "oboe": (68, 69),
    "clarinet": (71, 69),
    "flute": (73, 69),
}

#: Notes that ship to be trained on.
FEW_PROGRAMS = (0, 6, 11, 19, 24, 32, 40, 48, 56, 65, 71, 73)
FEW_PITCHES = range(45, 82, 6)


def instrument(program: int) -> str:
    """`flute_073`."""
    name = pretty_midi.program_to_instrument_name(program).lower()
    return f"{re.sub(r'[^a-z0-9]+', '_', name).strip('_')}_{program:03}"


def score(program: int, notes: list[tuple[int, int]]) -> pretty_midi.PrettyMIDI:
    """Notes `(pitch, velocity)` one by one, a second each, then silence at once."""
    midi = pretty_midi.PrettyMIDI()
    voice = pretty_midi.Instrument(program)
    for i, (pitch, velocity) in enumerate(notes):
        start = i * SPACING
        voice.notes.append(pretty_midi.Note(velocity, pitch, start, start + 1.0))
        voice.control_changes.append(pretty_midi.ControlChange(120, 0, start + SPACING - 0.05))
    midi.instruments.append(voice)
    return midi


def play(program: int, notes: list[tuple[int, int]], soundfont: Path) -> Iterator[Tensor]:
    """Samples `(RATE,)` of every note."""
    with tempfile.TemporaryDirectory() as temporary:
        midi, sound = Path(temporary, "notes.mid"), Path(temporary, "notes.wav")
        score(program, notes).write(str(midi))
        effects = ["-R", "0", "-C", "0"]
        subprocess.run(
            ["fluidsynth", "-ni", "-q", *effects, "-r", str(RENDERED), "-g", "0.8", "-O", "s16",
             "-T", "wav", "-F", str(sound), str(soundfont), str(midi)],
            check=True,
            capture_output=True,
        )  # fmt: skip
        audio = torch.from_numpy(soundfile.read(sound, dtype="float32", always_2d=True)[0]).mean(1)
    audio = resample(audio, RENDERED, RATE)
    for i in range(len(notes)):
        start = round(i * SPACING * RATE)
        yield audio[start : start + RATE]


def render(
    program: int, folder: Path, soundfont: Path, notes: list[tuple[int, int]], ending: str
) -> int:
    """Plays one program into files, a note each; returns how many were made."""
    made = 0
    for (pitch, velocity), samples in zip(notes, play(program, notes, soundfont), strict=True):
        if samples.abs().max() > SILENT:
            write(samples, folder / f"{instrument(program)}-{pitch:03}-{velocity:03}{ending}")
            made += 1
    return made


def write(samples: Tensor, path: Path) -> None:
    with writing(path) as temporary:
        soundfile.write(temporary, samples.numpy(), RATE, "PCM_16")


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--soundfont", type=click.Path(path_type=Path, exists=True),
              help="An .sf2 file.  [default: the one of pretty_midi]")  # fmt: skip
@click.option("--samples", is_flag=True, help="Make the notes that ship with the package.")
def main(folder: Path | None, soundfont: Path | None, samples: bool) -> None:
    """Render notes into FOLDER, 20,374 of them (0.7 GB), in some minutes."""
    if shutil.which("fluidsynth") is None:
        raise click.UsageError("FluidSynth is missing (apt install fluidsynth)")
    if (folder is None) != samples:
        raise click.UsageError("give either FOLDER or --samples")
    soundfont = soundfont or Path(pretty_midi.__file__).parent / "TimGM6mb.sf2"
    torch.set_num_threads(1)
    if samples:
        for name, (program, pitch) in NAMED.items():
            [note] = play(program, [(pitch, 100)], soundfont)
            write(note, SAMPLES / f"{name}.flac")
    folder = folder or SAMPLES / "notes"
    programs = FEW_PROGRAMS if samples else PROGRAMS
    pitches, velocities = (FEW_PITCHES, (90,)) if samples else (PITCHES, VELOCITIES)
    notes = [(pitch, velocity) for pitch in pitches for velocity in velocities]
    ending = ".flac" if samples else ".wav"
    one = partial(render, folder=folder, soundfont=soundfont, notes=notes, ending=ending)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = sum(track(pool.map(one, programs), "rendering", total=len(programs)))
    print(f"{folder}: {made} notes made")


if __name__ == "__main__":
    main()
