"""Notes by name: those of a General MIDI soundfont, and a few that ship with us.

Instruments are held out whole: no note that is tested on is of an instrument that was trained on.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from ae_audio.modality import Notes
from ae_toolkit import Examples, RunError, UsageError
from ae_toolkit.data.examples import Split, data_roots
from ae_toolkit.data.folder import read_folder, split_of

DATA_FOLDER = "gm-notes"


def gm_notes(*, modality: Notes, split: Split) -> Examples:
    """20,374 notes: 112 programs of General MIDI, C2 to C7, at three velocities.

    Looked for in `gm-notes/` of the places where data sets are; `scripts/make_notes.py` makes it.
    """
    root = next((r / DATA_FOLDER for r in data_roots() if (r / DATA_FOLDER).is_dir()), None)
    if root is None:
        raise RunError(
            f"data set 'gm-notes': the folder {DATA_FOLDER} is not there; make it by 'python "
            f"scripts/make_notes.py data/{DATA_FOLDER}', train on a folder of yours with --data "
            f"FOLDER, or use --data notes-sample, which is bundled"
        )
    return _split(root, "gm-notes", modality, split)


def notes_sample(*, modality: Notes, split: Split) -> Examples:
    """A few notes of a few instruments, which ship with the package."""
    with as_file(files("ae_audio") / "samples") as folder:
        return _split(folder / "notes", "notes-sample", modality, split)


def instrument_of(item: Any) -> str:
    """The instrument in a name such as `flute_073-060-100`, as NSynth names its notes."""
    return item.name.partition("-")[0]


def _split(root: Path, name: str, modality: Notes, split: Split) -> Examples:
    if not isinstance(modality, Notes):
        raise UsageError(
            f"data set {name!r} holds notes, which this recipe's data type does not read"
        )
    corpus = read_folder([root], modality, group=instrument_of, report=split == "train")
    return split_of(corpus.examples, modality, split)
