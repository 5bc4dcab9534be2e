"""From a score to its melodies: which track, which of its notes, where the bars are.

The rule, where nothing is asked for: the melody is the track with the highest median pitch among
those that are not drums and hold at least a quarter as many notes as the fullest; in it, the
skyline, the highest note that sounds (Uitdenbogerd and Zobel 1998). A change of meter begins a new
melody, and so does a change of tempo that lasts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ae_music.grid import COMMON, Melody, Meter, Notes, write_steps
from ae_music.score import Change, Score, Track
from ae_toolkit import Failure, Misuse

LASTING = 2  #: bars that a tempo must last to begin a melody of its own
SAME_TEMPO = 0.02  #: relative difference


@dataclass(frozen=True)
class Section:
    """A stretch of a score in one meter at one tempo, in steps."""

    start: int
    end: int
    meter: Meter
    tempo: float


def melodies_of(
    score: Score,
    *,
    track: str | None = None,
    pickup: int | None = None,
    where: str = "",
) -> list[Melody]:
    """Every melody of a score, one for each section that has notes.

    Args:
        score: of a file or an object.
        track: a track's number from 1, its name, or `all`; None: by the rule above.
        pickup: sixteenths before the first bar line; None: found by accents and long notes.
        where: begins every sentence, such as `tune.mid: `.

    Raises:
        Misuse: there is no such track.
        Failure: there is no melody; the sentence says why.
    """
    chosen = choose_track(score, track, where=where)
    notes = skyline(chosen.on_grid())
    found = []
    for section in sections(score):
        inside = (notes.start >= section.start) & (notes.start < section.end)
        if not inside.any():
            continue
        mine = Notes(*(column[inside] for column in notes))
        mine = mine._replace(end=np.minimum(mine.end, section.end))
        found.append(_melody(mine, section, score, chosen, pickup if not found else None))
    if not found:
        raise Failure(f"{where}no melody was found, its notes lie outside of every section")
    return found


def choose_track(score: Score, wanted: str | None, *, where: str = "") -> Track:
    """The track that holds the melody.

    Raises:
        Misuse: there is no such track.
        Failure: there are drums only.
    """
    pitched = [track for track in score.tracks if not track.is_drum]
    if not pitched:
        raise Failure(f"{where}no melody was found, there are drums only")
    if wanted is None:
        fullest = max(map(len, pitched))
        full = [track for track in pitched if 4 * len(track) >= fullest]
        return max(full, key=lambda track: float(np.median(track.pitch)))
    if wanted == "all":
        return _merged(pitched)
    if wanted.isdigit() and 1 <= int(wanted) <= len(score.tracks):
        track = score.tracks[int(wanted) - 1]
        if track.is_drum:
            raise Misuse(f"{where}track {wanted} is a drum track, which has no melody")
        return track
    named = [track for track in score.tracks if wanted.lower() in track.name.lower()]
    if wanted.isdigit() or not named:
        names = ", ".join(f"{i} {t.name!r}" for i, t in enumerate(score.tracks[:12], start=1))
        raise Misuse(f"{where}there is no track {wanted!r}: choose from {names}, or all")
    return named[0]


def _merged(tracks: Sequence[Track]) -> Track:
    columns = [
        np.concatenate([getattr(track, name) for track in tracks])
        for name in ("start", "end", "pitch", "velocity")
    ]
    order = np.argsort(columns[0], kind="stable")
    return Track("all", tracks[0].program, False, *(column[order] for column in columns))


def skyline(notes: Notes) -> Notes:
    """The highest note at any moment: one voice, without overlaps.

    A lower note that begins while a higher one sounds is left out, unless the higher one is in its
    last sixteenth (it was played legato) and ends there.
    """
    order = np.lexsort((-notes.pitch, notes.start))
    first = np.ones(len(order), bool)
    first[1:] = np.diff(notes.start[order]) > 0
    start, end, pitch, velocity = (column[order[first]] for column in notes)
    if (end[:-1] > start[1:]).any():
        kept, until, top = [0], int(end[0]), int(pitch[0])
        for i, (s, e, p) in enumerate(zip(start[1:], end[1:], pitch[1:], strict=True), start=1):
            if s < until - 1 and p <= top:
                continue
            kept.append(i)
            until, top = int(e), int(p)
        start, end, pitch, velocity = (c[kept] for c in (start, end, pitch, velocity))
    end = np.minimum(end, np.append(start[1:], np.iinfo(np.int64).max))
    return Notes(start, end, pitch, velocity)


def sections(score: Score) -> list[Section]:
    """The score cut where the meter changes, and where the tempo changes for two bars or more."""
    length = math.ceil(score.length)
    found: list[Section] = []
    meters = list(score.meters)
    for i, (at, meter) in enumerate(meters):
        end = meters[i + 1].at if i + 1 < len(meters) else length
        start, end = round(at), min(round(end), length)
        if found and found[-1].meter == meter:
            start = found.pop().start
        if found and found[-1].end - found[-1].start < min(found[-1].meter.steps, meter.steps):
            start = found.pop().start  # an upbeat that was written as a bar of its own meter
        if end > start:
            found.append(Section(start, end, meter if meter.steps else COMMON, 0.0))
    return [part for whole in found for part in _by_tempo(whole, score.tempi)]


def _by_tempo(section: Section, tempi: Sequence[Change]) -> list[Section]:
    least = LASTING * section.meter.steps
    starts = [section.start, *(round(t.at) for t in tempi if section.start < t.at < section.end)]
    ends = [*starts[1:], section.end]
    pieces: list[list[tuple[int, int, float]]] = [[]]
    for start, end in zip(starts, ends, strict=True):
        tempo = [t.value for t in tempi if t.at <= start][-1]
        before = pieces[-1]
        so_far = sum(e - s for s, e, _ in before)
        new = before and abs(tempo / _mean_tempo(before) - 1) > SAME_TEMPO
        if new and so_far >= least and end - start >= least:
            pieces.append([])
        pieces[-1].append((start, end, tempo))
    return [
        replace(section, start=p[0][0], end=p[-1][1], tempo=_mean_tempo(p)) for p in pieces if p
    ]


def _mean_tempo(pieces: Sequence[tuple[int, int, float]]) -> float:
    """Steps per time, over pieces of `(start, end, tempo)`."""
    steps = sum(max(end - start, 1) for start, end, _ in pieces)
    return steps / sum(max(end - start, 1) / tempo for start, end, tempo in pieces)


def _melody(
    notes: Notes, section: Section, score: Score, track: Track, pickup: int | None
) -> Melody:
    bar = section.meter.steps
    if pickup is None:
        pickup = find_pickup(notes, section.start, bar)
    origin = section.start + pickup % bar - (bar if pickup % bar else 0)
    if origin + bar <= notes.start[0] < section.start + bar:
        origin += bar  # the first bar would be empty but for what a pickup fills up
    shifted = notes._replace(start=notes.start - origin, end=notes.end - origin)
    length = bar * math.ceil(int(shifted.end[-1]) / bar)
    steps, velocities = write_steps(shifted, length)
    keys = [key.value for key in score.keys if round(key.at) <= section.start] or [None]
    return Melody(
        steps,
        velocities,
        section.meter,
        section.tempo,
        keys[-1],
        track.program,
        track.name or score.title,
        origin,
    )


def find_pickup(notes: Notes, start: int, bar: int) -> int:
    """How many steps lie before the first bar line, if the notes say so clearly; else 0.

    Accents say it where there are any: more than half of them, and of all bars, at one place in the
    bar. Else long notes do: half as much sound again must begin there as at the section's start.
    """
    place = (notes.start - start) % bar
    if len(place) < 8:
        return 0
    loud = notes.velocity[1:] > np.median(notes.velocity)
    accents = np.where(loud, notes.velocity[1:] - np.median(notes.velocity), 0)
    weight = np.bincount(place[1:], weights=accents, minlength=bar)
    best = int(weight.argmax())
    num_bars = (int(notes.end[-1]) - start) / bar
    if weight[best] > 0.5 * weight.sum() and (loud & (place[1:] == best)).sum() > 0.5 * num_bars:
        return best
    length = np.bincount(place, weights=np.minimum(notes.end - notes.start, bar), minlength=bar)
    best = int(length.argmax())
    return best if length[best] > 1.5 * length[0] and length[best] > 0.25 * length.sum() else 0
