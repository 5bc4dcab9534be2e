"""From a score to its melodies: which notes of which track, and where the bars are.

`choose.py` says which track. The melody is its skyline, the highest note that sounds (Uitdenbogerd
and Zobel 1998). A change of meter begins a new melody, and so does a change of tempo that lasts; a
bar shorter than the next, in a meter of its own, is that one's pickup.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ae_music.grid import COMMON_TIME, Melody, Meter, Notes, skyline, write_steps
from ae_music.midi.choose import choose_track
from ae_music.midi.score import Change, Score, Track
from ae_music.midi.timing import timing_of

MIN_TEMPO_BARS = 2  #: bars that a tempo must last to begin a melody of its own
SAME_TEMPO = 0.02  #: relative difference


@dataclass(frozen=True)
class Section:
    """A stretch of a score in one meter at one tempo, in steps.

    Attributes:
        start: where it begins.
        end: where it ends.
        meter: its time signature.
        tempo: quarter notes per minute.
        since: where the meter begins; earlier than `start` where the tempo has changed since.
        pickup: steps from there to the first bar line; None: not written.
    """

    start: int
    end: int
    meter: Meter
    tempo: float
    since: int = 0
    pickup: int | None = None


def melodies_of(score: Score, *, track: str | None = None, where: str = "") -> list[Melody]:
    """Every melody of a score, one for each section that has notes.

    Where the score does not know its bars, pickups are found by accents and long notes.

    Args:
        score: of a file or an object.
        track: a track's number from 1, its name, or `all`; None: by the rules of
            `choose.py`.
        where: begins every sentence, such as `tune.mid: `.

    Raises:
        UsageError: there is no such track.
        RunError: there is no melody; the sentence says why.
    """
    chosen = choose_track(score, track, where=where).track
    notes = skyline(chosen.on_grid(late=timing_of(chosen, tick=score.tick).late))
    found: list[Melody] = []
    since, bar_line = -1, 0
    for section in sections(score):
        first, last = np.searchsorted(notes.start, (section.start, section.end))
        if first == last:
            continue
        mine = Notes(*(column[first:last] for column in notes))
        mine.end[-1] = min(mine.end[-1], section.end)
        if section.since != since:
            since = section.since
            written = section.pickup
            if written is None and not score.knows_bars:
                written = find_pickup(mine, section.start, section.meter.steps)
            bar_line = since + (written or 0)
        found.append(_melody(mine, section, score, chosen, bar_line))
    assert found, "sections cover every note"
    return found


def sections(score: Score) -> list[Section]:
    """The score cut where the meter changes, and where the tempo changes for two bars or more."""
    latest = max((float(track.start[-1]) for track in score.tracks), default=0.0)
    length = max(math.ceil(score.length), round(latest) + 1)
    found: list[Section] = []
    for at, meter in score.meters:
        start, meter = round(at), meter if meter.steps else COMMON_TIME
        if start >= length:
            break
        while found and found[-1].start == start:
            found.pop()
        if found and found[-1].meter == meter:
            found[-1] = replace(found[-1], end=length)
            continue
        if found:
            found[-1] = replace(found[-1], end=start)
        found.append(Section(start, length, meter, 0.0, start))
    found = _without_short_bars(found)
    tempi = [t for i, t in enumerate(score.tempi) if i == 0 or t.value != score.tempi[i - 1].value]
    starts = [round(t.at) for t in tempi]
    return [part for whole in found for part in _by_tempo(whole, tempi, starts)]


def _without_short_bars(found: list[Section]) -> list[Section]:
    """A bar that is shorter than its neighbour's, in a meter of its own, joins it.

    That is how a pickup is written as a bar, and at the end the bar that it was taken from.
    """
    rows: list[Section] = []
    for section in found:
        if rows and _is_short_bar(rows[-1], section.meter):
            before = rows.pop()
            section = replace(
                section,
                start=before.start,
                since=before.start,
                pickup=section.start - before.start,
            )
        rows.append(section)
    if len(rows) > 1 and _is_short_bar(rows[-1], rows[-2].meter):
        end = rows.pop().end
        rows[-1] = replace(rows[-1], end=end)
    return rows


def _is_short_bar(section: Section, neighbour: Meter) -> bool:
    length = section.end - section.start
    return length <= section.meter.steps and length < neighbour.steps


def _by_tempo(section: Section, tempi: Sequence[Change], starts: Sequence[int]) -> list[Section]:
    least = MIN_TEMPO_BARS * section.meter.steps
    first = max(bisect_right(starts, section.start) - 1, 0)
    last = bisect_left(starts, section.end)
    edges = [section.start, *starts[first + 1 : last], section.end]
    pieces: list[list[tuple[int, float]]] = [[]]  # of one section each: steps and tempo
    steps = times = 0.0
    for start, end, change in zip(edges[:-1], edges[1:], tempi[first:last], strict=True):
        if start == end:
            continue
        new = steps >= least and abs(change.value * times / steps - 1) > SAME_TEMPO
        if new and end - start >= least:
            pieces.append([])
            steps = times = 0.0
        pieces[-1].append((end - start, change.value))
        steps, times = steps + end - start, times + (end - start) / change.value
    parts, at = [], section.start
    for piece in pieces:
        end = at + sum(steps for steps, _ in piece)
        parts.append(replace(section, start=at, end=end, tempo=_mean_tempo(piece)))
        at = end
    return parts


def _mean_tempo(piece: Sequence[tuple[int, float]]) -> float:
    """Steps per time, over pairs of steps and tempo."""
    if len(piece) == 1:
        return piece[0][1]
    return sum(steps for steps, _ in piece) / sum(steps / tempo for steps, tempo in piece)


def _melody(notes: Notes, section: Section, score: Score, track: Track, bar_line: int) -> Melody:
    bar = section.meter.steps
    origin = section.start - (section.start - bar_line) % bar
    if origin + bar <= notes.start[0] < section.start + bar:
        origin += bar  # the first bar would be empty but for what a pickup fills up
    shifted = notes._replace(start=notes.start - origin, end=notes.end - origin)
    length = bar * math.ceil(int(shifted.end[-1]) / bar)
    steps, velocities = write_steps(shifted, length)
    key = next((k.value for k in reversed(score.keys) if round(k.at) <= section.start), None)
    return Melody(
        steps,
        velocities,
        section.meter,
        section.tempo,
        key,
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
    usual = np.sort(notes.velocity)[len(notes.velocity) // 2]
    accents = np.maximum(notes.velocity[1:] - usual, 0)
    weight = np.bincount(place[1:], weights=accents, minlength=bar)
    best = int(weight.argmax())
    num_bars = (int(notes.end[-1]) - start) / bar
    num_accents = np.count_nonzero(accents[place[1:] == best])
    if weight[best] > 0.5 * weight.sum() and num_accents > 0.5 * num_bars:
        return best
    length = np.bincount(place, weights=np.minimum(notes.end - notes.start, bar), minlength=bar)
    best = int(length.argmax())
    return best if length[best] > 1.5 * length[0] and length[best] > 0.25 * length.sum() else 0
