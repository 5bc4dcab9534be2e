"""What the commands share: sounds as people name them, models of notes, and what is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ae_audio import SUFFIXES
from ae_toolkit import Failure, Misuse
from ae_toolkit.cli.options import (
    FIGURE_ENDINGS,
    need_ending,
    out_option,
    overwrite_option,
    report_skipped,
)
from ae_toolkit.errors import choose
from ae_toolkit.files import safe_name, take_default

if TYPE_CHECKING:
    from ae_audio.dsp.sound import Sound
    from ae_toolkit import Model

CLEAR = 0.5  #: clarity from which on a sound has a pitch

Command = Callable[..., Any]


png_option = click.option("--png", type=click.Path(path_type=Path, dir_okay=False),
                          help="Also draw spectrograms (.png, .svg or .pdf).")  # fmt: skip


def out_options(default: str) -> Callable[[Command], Command]:
    """`-o`: the sound to write, `--overwrite` and `--png`."""
    out = out_option(default, "Sound to write (.wav, .flac or .ogg).")
    return lambda command: out(png_option(command))


def out_each_options(default: str) -> Callable[[Command], Command]:
    """`-o`: the sound to write, or the folder for several, `--overwrite` and `--png`."""
    out = click.option("-o", "--out", type=click.Path(path_type=Path),
                       help=f"Sound to write (.wav, .flac or .ogg); of several, the folder for the "
                            f"results.  [default: {default}.wav or {default}/]")  # fmt: skip
    return lambda command: out(overwrite_option(png_option(command)))


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


class Sounds:
    """Sounds that a user named: files, folders of them, and names of notes that ship.

    Iterating reads one at a time; of several, bad ones are skipped.

    Args:
        paths: as they were named.
        read: `open_sound` or `open_note`.

    Attributes:
        many: whether there may be several, so that -o names a folder.

    Raises:
        Misuse: there is no such name, or no sound in a folder.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Sound]):
        from ae_audio.modality import Notes
        from ae_toolkit.data.folder import find_files

        self.read, self.files, self.many = read, list[Path](), len(paths) > 1
        self.skipped: list[tuple[str, str]] = []
        for path in paths:
            if path.is_dir():
                self.files += find_files(path, Notes())
                self.many = True
            else:
                self.files.append(find_sound(path))

    def __iter__(self) -> Iterator[tuple[str, Sound]]:
        """Yields the name of a result, without an ending, and the sound.

        Raises:
            Misuse: there is no such file.
            Failure: the only one, or every one of them, is broken.
        """
        names = [safe_name(path.stem) for path in self.files]
        if len({name.casefold() for name in names}) < len(names):
            names = [f"{i:03}-{name}" for i, name in enumerate(names)]
        for path, name in zip(self.files, names, strict=True):
            try:
                sound = self.read(path)
            except (Failure, Misuse) as error:
                if not (self.many and path.exists()):
                    raise
                self.skipped.append((str(path), str(error).removeprefix(f"{path}: ")))
                continue
            yield name, sound
        if len(self.skipped) == len(self.files):
            path, reason = self.skipped[0]
            raise Failure(f"none of {len(names)} sounds can be used; the first is {path}: {reason}")

    def out(self, out: Path | None, png: Path | None, *, default: str) -> Path:
        """Where results go: a file for one sound, a folder for several.

        Raises:
            Misuse: it is the other, or names another format.
        """
        if out is None:
            out = Path(default if self.many else f"{default}.wav")
            take_default(out)
        check_endings(None if self.many else out, png)
        if self.many and (out.suffix.lower() in SUFFIXES or out.is_file()):
            raise Misuse(f"{out}: of several sounds, -o is the folder for the results")
        if self.many and png:
            raise Misuse(f"{png}: --png draws one sound; draw several with 'ae audio figure'")
        return out

    def report(self) -> None:
        """Lists what was skipped, and ends the command with exit code 1 where something was."""
        report_skipped(self.skipped, total=len(self.files))


def open_sound(path: Path) -> Sound:
    """Reads a file; says what a listener should know of it.

    Raises:
        Misuse: there is no such file.
        Failure: it is no sound that could be a note.
    """
    from ae_audio.dsp.sound import read_sound
    from ae_toolkit.console import tell

    sound = read_sound(path)
    if sound.clipped > 0.001:
        tell(
            f"{path}: is clipped, {sound.clipped:.1%} of its samples are at full scale; it was "
            f"recorded too loud, and what is made of it will sound harsh"
        )
    return sound


def open_note(path: Path) -> Sound:
    """Reads a sound as `open_sound` does, and says where it has no pitch."""
    from ae_audio.dsp.pitch import pitch_name
    from ae_audio.modality import note_of
    from ae_toolkit.console import tell

    sound = open_sound(path)
    note = note_of(sound)
    if note.clarity < CLEAR:
        tell(f"{path}: no clear pitch is heard in it; it is taken for {pitch_name(note.pitch)}")
    return sound


def find_sound(path: Path) -> Path:
    """A path as it is, or where nothing lies there the note that ships under a name like `flute`.

    Raises:
        Misuse: there is neither.
    """
    if path.exists() or path.suffix:
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
