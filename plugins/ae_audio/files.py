"""What the commands share: sounds as people name them, models of notes, and what is written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ae_audio import SUFFIXES
from ae_toolkit import Misuse
from ae_toolkit.errors import choose
from ae_toolkit.options import FIGURE_ENDINGS, need_ending

if TYPE_CHECKING:
    from ae_audio.sound import Sound
    from ae_toolkit import Model

CLEAR = 0.5  #: clarity from which on a sound has a pitch

Command = Callable[..., Any]


def out_options(default: str) -> Callable[[Command], Command]:
    """`-o`: the sound to write, and beside it `--png`."""

    def decorate(command: Command) -> Command:
        for option in (
            click.option("--png", type=click.Path(path_type=Path, dir_okay=False),
                         help="Also draw spectrograms (.png, .svg or .pdf)."),
            click.option("-o", "--out", default=default, show_default=True,
                         type=click.Path(path_type=Path, dir_okay=False),
                         help="Sound to write (.wav, .flac or .ogg)."),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def check_endings(out: Path | None, png: Path | None) -> None:
    """Refuses names of other formats early, before any work is done."""
    need_ending(out, SUFFIXES)
    need_ending(png, FIGURE_ENDINGS)


def load_notes(model: str, device: str) -> Model:
    """Loads a model of notes.

    Raises:
        Misuse: it is one of something else.
    """
    from ae_audio.modality import Notes
    from ae_toolkit import load

    loaded = load(model, device=device)
    if not isinstance(loaded.modality, Notes):
        raise Misuse(f"model {model!r} is one of {loaded.recipe.modality.name!r}, not of notes")
    return loaded


def load_timbres(model: str, device: str) -> Model:
    """Loads a model of notes that is told the pitch.

    Raises:
        Misuse: it is another.
    """
    loaded = load_notes(model, device)
    if loaded.recipe.condition != ("pitch",):
        raise Misuse(f"model {model!r} is not told the pitch; use one such as 'note-timbre'")
    return loaded


def open_sound(path: Path) -> Sound:
    """Reads a file, or a note that ships under that name; says what a listener should know of it.

    Raises:
        Misuse: there is neither.
        Failure: it is no sound that could be a note.
    """
    from ae_audio.sound import read_sound

    sound = read_sound(find_sound(path))
    if sound.clipped > 0.001:
        print(
            f"{path}: is clipped, {sound.clipped:.1%} of its samples are at full scale; it was "
            f"recorded too loud, and what is made of it will sound harsh",
            file=sys.stderr,
        )
    return sound


def open_note(path: Path) -> Sound:
    """Reads a sound as `open_sound` does, and says where it has no pitch."""
    from ae_audio.modality import note_of
    from ae_audio.pitch import pitch_name

    sound = open_sound(path)
    note = note_of(sound)
    if note.clarity < CLEAR:
        print(
            f"{path}: no clear pitch is heard in it; it is taken for {pitch_name(note.pitch)}",
            file=sys.stderr,
        )
    return sound


def find_sound(path: Path) -> Path:
    """A file as it is, or the one that ships under a name such as `flute`."""
    if path.is_file() or path.suffix:
        return path
    known = sample_names()
    if str(path) not in known:
        raise Misuse(f"{path}: is neither a file nor a note that ships: {choose(str(path), known)}")
    with as_file(files("ae_audio") / "samples" / f"{path}.flac") as shipped:
        return shipped


def sample_names() -> list[str]:
    """The notes that ship."""
    with as_file(files("ae_audio") / "samples") as folder:
        return sorted(path.stem for path in folder.glob("*.flac"))


def write(sounds: Sequence[Sound], path: Path) -> None:
    """Writes sounds one after the other, whole or not at all."""
    from ae_audio.sound import write_sounds
    from ae_toolkit.files import writing

    with writing(path) as temporary:
        write_sounds(sounds, temporary)


def write_each(sounds: Sequence[Sound], folder: Path, *, stem: str) -> None:
    """Writes every sound as a file of its own."""
    for i, sound in enumerate(sounds):
        write([sound], folder / f"{stem}-{i:02}.wav")
