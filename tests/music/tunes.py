"""The bundled tunes that tests play with, and how their notes are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import symusic
from ae_music.grid import COMMON_TIME, Melody, Meter, Notes, write_steps
from ae_music.modality import Melodies
from conftest import ROOT

SAMPLES = ROOT / "plugins/ae_music/samples"
A, B = SAMPLES / "drowsy-maggie.mid", SAMPLES / "smash-the-windows-reel.mid"
JIG, OTHER_JIG = SAMPLES / "garryowen.mid", SAMPLES / "smash-the-windows.mid"
CHORALE = SAMPLES / "chorale-bwv66.6.mid"


def melody(*notes: tuple[int, int, int], meter: Meter = COMMON_TIME, **changes: Any) -> Melody:
    """From `(onset, end, pitch)` in steps."""
    columns = np.array(notes, dtype=np.int64).T
    length = -(-int(columns[1].max()) // meter.steps) * meter.steps
    loud = np.full(len(notes), 90)
    return Melody(*write_steps(Notes(*columns, loud), length), meter, **changes)


def read(path: Path) -> Melody:
    return next(Melodies().read(path))


def bundled(name: str) -> Melody:
    return read(SAMPLES / f"{name}.mid")


def notes_of(path: Path, bars: float | None = None) -> list[tuple[int, int]]:
    """`(sixteenth, pitch)` of a file by another library, up to a number of bars of 4/4."""
    score = symusic.Score(path)
    scale = 4 / score.ticks_per_quarter
    rows = [(round(n.time * scale), n.pitch) for track in score.tracks for n in track.notes]
    return sorted(row for row in rows if bars is None or row[0] < 16 * bars)
