"""Reading MIDI files into arrays of notes, ours and others', on the same files.

Every reader gives, per track, onsets, ends and pitches as arrays, and the tempi and meters, in the
unit that it has at hand: steps (ours), seconds (pretty_midi), ticks (miditoolkit). Whether they
found the same notes is checked before anything is timed, in ticks.
"""

from __future__ import annotations

import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.work import peak_mb


class Read(NamedTuple):
    """What is in a file, in the reader's own unit.

    Attributes:
        tracks: `(N, 3)` each: onset, end, pitch.
        tempi: `(K, 2)`: when, quarter notes per minute.
        meters: `(M, 3)`: when, numerator, denominator.
    """

    tracks: list[np.ndarray]
    tempi: np.ndarray
    meters: np.ndarray


class Reader(NamedTuple):
    """One way to read a file.

    Attributes:
        read: a path to what is in the file.
        notes: the same to its notes, `{(onset, end, pitch): how many}` in ticks.
        needs: a package, as pip names it.
    """

    read: Callable[[Path], Any]
    notes: Callable[[Path], Counter[tuple[int, int, int]]] | None = None
    needs: str = ""


def ours(path: Path) -> Read:
    from ae_music.midi.score import read_score

    score = read_score(path)
    return Read(
        [np.stack([t.start, t.end, t.pitch], 1) for t in score.tracks],
        np.array(score.tempi),
        np.array([(m.at, m.value.numerator, m.value.denominator) for m in score.meters]),
    )


def our_melody(path: Path) -> list[Any]:
    """What the data type does: from the file to its melodies, track, voice and bars found."""
    from ae_music.modality import Melodies

    return list(Melodies().read(path))


def pretty_midi(path: Path) -> Read:
    from pretty_midi import PrettyMIDI

    midi = PrettyMIDI(str(path))
    return Read(
        [np.array([(n.start, n.end, n.pitch) for n in i.notes]) for i in midi.instruments],
        np.stack(midi.get_tempo_changes(), 1),
        np.array([(m.time, m.numerator, m.denominator) for m in midi.time_signature_changes]),
    )


def miditoolkit(path: Path) -> Read:
    from miditoolkit import MidiFile

    midi = MidiFile(str(path))
    return Read(
        [np.array([(n.start, n.end, n.pitch) for n in i.notes]) for i in midi.instruments],
        np.array([(t.time, t.tempo) for t in midi.tempo_changes]),
        np.array([(m.time, m.numerator, m.denominator) for m in midi.time_signature_changes]),
    )


def _count(tracks: Sequence[np.ndarray], scale: float) -> Counter[tuple[int, int, int]]:
    """Notes of onsets and ends in a unit of `scale` ticks."""
    rows = np.concatenate([track.reshape(-1, 3) for track in tracks])
    ticks = np.rint(rows * (scale, scale, 1)).astype(int)
    return Counter(tuple(row) for row in ticks.tolist())


def _our_notes(path: Path) -> Counter[tuple[int, int, int]]:
    return _count(ours(path).tracks, _division(path) / 4)


def _pretty_notes(path: Path) -> Counter[tuple[int, int, int]]:
    from pretty_midi import PrettyMIDI

    midi = PrettyMIDI(str(path))
    notes = (note for instrument in midi.instruments for note in instrument.notes)
    ticks = midi.time_to_tick
    return Counter((ticks(note.start), ticks(note.end), note.pitch) for note in notes)


def _toolkit_notes(path: Path) -> Counter[tuple[int, int, int]]:
    return _count(miditoolkit(path).tracks, 1.0)


def _division(path: Path) -> int:
    """Ticks per quarter note, out of the head of a file."""
    return int.from_bytes(path.read_bytes()[12:14], "big")


READERS = {
    "ours": Reader(ours, _our_notes),
    "ours, to melodies": Reader(our_melody),
    "pretty_midi": Reader(pretty_midi, _pretty_notes, needs="pretty_midi"),
    "miditoolkit": Reader(miditoolkit, _toolkit_notes, needs="miditoolkit"),
}


def missing(name: str) -> list[str]:
    needs = READERS[name].needs
    return [needs] if needs and find_spec(needs) is None else []


def agreement(name: str, paths: Sequence[Path]) -> dict[str, Any]:
    """In how many files a reader finds exactly our notes, and which is the first that differs."""
    warnings.simplefilter("ignore")
    notes = READERS[name].notes
    if notes is None:
        return {}
    differing = [path.name for path in paths if notes(path) != _our_notes(path)]
    return {"agree": len(paths) - len(differing), "differs": differing[:1]}


def read_all(name: str, paths: Sequence[Path], *, seconds: float = 1.0) -> dict[str, float]:
    """Files/s on one core, over as many passes as take some time; imports and a file before."""
    warnings.simplefilter("ignore")
    read = READERS[name].read
    read(paths[0])
    began, passes = time.perf_counter(), 0
    while not passes or time.perf_counter() - began < seconds:
        for path in paths:
            read(path)
        passes += 1
    rate = passes * len(paths) / (time.perf_counter() - began)
    return {"files_per_s": rate, "peak_mb": peak_mb(resource.getrusage(resource.RUSAGE_SELF))}


def read_all_parallel(paths: Sequence[Path], num: int, *, seconds: float = 1.0) -> float:
    """Files/s of ours on `num` cores, the processes being there already."""
    many = -(-len(paths) // (4 * num))
    with ProcessPoolExecutor(num) as pool:
        list(pool.map(ours, paths[: 8 * num], chunksize=1))
        began, passes = time.perf_counter(), 0
        while not passes or time.perf_counter() - began < seconds:
            list(pool.map(ours, paths, chunksize=many))
            passes += 1
        return passes * len(paths) / (time.perf_counter() - began)
