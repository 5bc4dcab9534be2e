"""Melodies by name: the tunes of two old collections, and some of them that ship with us.

Tunes are split by title, since one tune may stand in both collections, and what a held-out tune
shares with a training tune, in whatever key, is left out of the test split, window by window.
"""

from __future__ import annotations

import re
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from ae_music.modality import Melodies
from ae_toolkit import Examples, RunError, UsageError
from ae_toolkit.data.examples import Split, data_roots
from ae_toolkit.data.folder import read_folder, split_of

TUNE_COLLECTIONS = ("oneills-1850", "ryans-mammoth")


def folk_tunes(*, modality: Melodies, split: Split) -> Examples:
    """3,068 tunes: O'Neill's Music of Ireland (1903) and Ryan's Mammoth Collection (1883).

    Looked for in `midi/oneills-1850` and `midi/ryans-mammoth` of the places where data sets are.
    """
    root = next(
        (r for r in data_roots() if all((r / "midi" / c).is_dir() for c in TUNE_COLLECTIONS)), None
    )
    if root is None:
        raise RunError(
            "data set 'folk-tunes': the folders midi/oneills-1850 and midi/ryans-mammoth are not "
            "there; set AE_DATA to the folder that holds midi/, train on a folder of yours with "
            "--data FOLDER, or use --data tunes-sample, which is bundled"
        )
    return _split(
        [root / "midi" / name for name in TUNE_COLLECTIONS], "folk-tunes", modality, split
    )


def tunes_sample(*, modality: Melodies, split: Split) -> Examples:
    """60 of those tunes, which ship with the package."""
    with as_file(files("ae_music") / "samples") as folder:
        return _split([folder / "tunes"], "tunes-sample", modality, split)


def title_of(item: Any) -> str:
    """What a tune is called, less what editors add: its letters, without kind and article."""
    words = re.findall(r"[a-z0-9]+", item.name.lower().replace("'", ""))
    dropped = {"the", "a", "reel", "jig", "hornpipe", "strathspey", "clog", "setting", "1st", "2nd"}
    return "".join(word for word in words if word not in dropped) or item.name


def _split(roots: list[Path], name: str, modality: Melodies, split: Split) -> Examples:
    if not isinstance(modality, Melodies):
        raise UsageError(
            f"data set {name!r} holds melodies, which this recipe's data type does not read"
        )
    corpus = read_folder(roots, modality, group=title_of, report=split == "train")
    return split_of(corpus.examples, modality, split)
