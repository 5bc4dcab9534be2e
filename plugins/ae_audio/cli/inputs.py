"""What the commands share: sounds as people name them, models of notes, and what is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from ae_audio import SOUND_SUFFIXES
from ae_audio.cli.options import check_endings
from ae_toolkit import UsageError
from ae_toolkit.cli.options import (
    report_skipped,
)
from ae_toolkit.errors import did_you_mean
from ae_toolkit.files import check_output, safe_names, take_default

if TYPE_CHECKING:
    from ae_audio.dsp.sound import Sound
    from ae_toolkit import Model
    from ae_toolkit.data.shards import Skipped

MIN_CLARITY = 0.5  #: clarity from which on a sound has a pitch


def load_notes(model: str, device: str) -> Model:
    """Loads a model of notes.

    Raises:
        UsageError: it is one of something else.
    """
    from ae_audio.modality import Notes
    from ae_toolkit import load

    loaded = load(model, device=device)
    if not isinstance(loaded.modality, Notes):
        raise UsageError(f"model {model!r} is one of {loaded.recipe.modality.name!r}, not of notes")
    return loaded


def load_timbres(model: str, device: str) -> Model:
    """Loads a model of notes that is told the pitch, and whose codes can be mixed.

    Raises:
        UsageError: it is another.
    """
    loaded = load_notes(model, device)
    if loaded.recipe.condition != ("pitch",):
        raise UsageError(f"model {model!r} is not told the pitch; use one such as 'note-timbre'")
    loaded.need_real_codes()
    return loaded


class Sounds:
    """Sounds that a user named: files, folders of them, and names of notes that ship.

    Iterating reads one at a time, and yields its file and the sound; of several, bad ones are
    skipped.

    Args:
        paths: as they were named.
        read: `open_sound` or `open_note`.

    Attributes:
        many: whether there may be several, so that -o names a folder.
        place_of: where the result of a file goes, once `choose_places` was called.

    Raises:
        UsageError: there is no such file or name, or no sound in a folder.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Sound]):
        from ae_audio.modality import Notes
        from ae_toolkit.data.folder import list_files

        self.read, self.many = read, len(paths) > 1 or paths[0].is_dir()
        self.files = list_files(map(find_sound, paths), Notes())
        self.place_of: dict[Path, Path] = {}
        self.skipped: list[Skipped] = []

    def __iter__(self) -> Iterator[tuple[Path, Sound]]:
        """Yields files and sounds.

        Raises:
            RunError: the only one, or every one of them, is broken.
        """
        from ae_toolkit.data.folder import read_each

        return read_each(self.files, self.read, self.skipped)

    def choose_places(self, out: Path | None, png: Path | None, *, default: str) -> None:
        """Chooses a file for each result: `out`, or of several sounds one in the folder `out`.

        A sound that was named twice counts once.

        Raises:
            UsageError: `out` is not what it should be, names another format, or has a file in it
                that nobody asked to replace.
        """
        if out is None:
            out = Path(default if self.many else f"{default}.wav")
            take_default(out)
        check_endings(None if self.many else out, png)
        if not self.many:
            self.place_of = {self.files[0]: out}
            return
        if out.suffix.lower() in SOUND_SUFFIXES or out.is_file():
            raise UsageError(f"{out}: of several sounds, -o is the folder for the results")
        if png:
            raise UsageError(f"{png}: --png draws one sound; draw several with 'ae audio figure'")
        self.files = list(dict.fromkeys(self.files))
        names = safe_names([file.stem for file in self.files])
        places = [out / f"{name}.wav" for name in names]
        for place in places:
            check_output(place, named=False)
        self.place_of = dict(zip(self.files, places, strict=True))

    def report(self) -> None:
        """Lists what was skipped, and ends the command with exit code 1 where something was."""
        report_skipped(self.skipped, total=len(self.files))


def open_sound(path: Path) -> Sound:
    """Reads a file; says what a listener should know of it.

    Raises:
        UsageError: there is no such file.
        RunError: it is no sound that could be a note.
    """
    from ae_audio.dsp.sound import read_sound
    from ae_toolkit.console import log

    sound = read_sound(path)
    if sound.clipped > 0.001:
        log(
            f"{path}: is clipped, {sound.clipped:.1%} of its samples are at full scale; it was "
            f"recorded too loud, and what is made of it will sound harsh"
        )
    return sound


def open_note(path: Path) -> Sound:
    """Reads a sound as `open_sound` does, and says where it has no pitch."""
    from ae_audio.dsp.pitch import pitch_name
    from ae_audio.modality import align_note
    from ae_toolkit.console import log

    sound = open_sound(path)
    note = align_note(sound)
    if note.clarity < MIN_CLARITY:
        log(f"{path}: no clear pitch is heard in it; it is taken for {pitch_name(note.pitch)}")
    return sound


def find_sound(path: Path) -> Path:
    """A path as it is, or where nothing lies there the note that ships under a name like `flute`.

    Raises:
        UsageError: there is neither.
    """
    if path.exists() or path.suffix:
        return path
    known = sample_names()
    if str(path) not in known:
        raise UsageError(
            f"{path}: is neither a file nor a note that ships: {did_you_mean(str(path), known)}"
        )
    with as_file(files("ae_audio") / "samples" / f"{path}.flac") as shipped:
        return shipped


def sample_names() -> list[str]:
    """The notes that ship."""
    with as_file(files("ae_audio") / "samples") as folder:
        return sorted(path.stem for path in folder.glob("*.flac"))
