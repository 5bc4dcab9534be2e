"""Melodies on a grid of sixteenths, as MusicVAE writes them (Roberts et al. 2018, section 4.1).

A step holds one of 90 values: `NO_EVENT` (go on with what sounds, or with silence), `NOTE_OFF`, or
the onset of one of the 88 keys of a piano. Two arrays and a few numbers are all there is to a
melody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ae_toolkit import UsageError

NO_EVENT, NOTE_OFF, LOWEST_KEY = 0, 1, 2  #: values of a step; `LOWEST_KEY` is the lowest key
MIN_PITCH, MAX_PITCH = 21, 108  #: MIDI numbers of the keys
NUM_VALUES = LOWEST_KEY + MAX_PITCH - MIN_PITCH + 1
STEPS_PER_QUARTER = 4

Steps = NDArray[np.uint8]


class Meter(NamedTuple):
    """A time signature."""

    numerator: int
    denominator: int

    def __str__(self) -> str:
        return f"{self.numerator}/{self.denominator}"

    @property
    def quarters(self) -> float:
        """The length of a bar in quarter notes."""
        return 4 * self.numerator / self.denominator

    @property
    def steps(self) -> int:
        """The length of a bar in sixteenths; 0 where a bar is no whole number of them."""
        steps = STEPS_PER_QUARTER * self.quarters
        return int(steps) if steps == int(steps) else 0


COMMON_TIME = Meter(4, 4)

#: The meters that models know, in the order of their class numbers.
KNOWN_METERS = (COMMON_TIME, Meter(2, 4), Meter(3, 4), Meter(6, 8), Meter(9, 8))
LONGEST_BAR = max(meter.steps for meter in KNOWN_METERS)

#: Meters that count as another: their bars are as long, or two of one make one of the other.
METER_CLASSES = {
    **{meter: meter for meter in KNOWN_METERS},
    **dict.fromkeys([Meter(2, 2), Meter(4, 2), Meter(8, 8), Meter(4, 8)], COMMON_TIME),
    **dict.fromkeys([Meter(1, 2), Meter(1, 4), Meter(2, 8)], Meter(2, 4)),
    **dict.fromkeys([Meter(3, 2), Meter(6, 4)], Meter(3, 4)),
    **dict.fromkeys([Meter(3, 8), Meter(12, 8)], Meter(6, 8)),
}


def meter_class(meter: Meter) -> int:
    """The class of a meter, for a model; one that is like no other is barred as 4/4."""
    return KNOWN_METERS.index(METER_CLASSES.get(meter, COMMON_TIME))


@dataclass(frozen=True, eq=False)  # of arrays there is no one truth: it equals itself only
class Melody:
    """One voice in one meter at one tempo.

    Attributes:
        steps: `(T,)` values, whole bars; it begins with silence where nothing begins at once.
        velocities: `(T,)`, 1 to 127 where a note begins, else 0.
        meter: its time signature.
        tempo: quarter notes per minute.
        key: as pretty_midi numbers keys, 0 to 11 major and 12 to 23 minor; None: not known.
        program: General MIDI instrument, 0 to 127.
        name: of the track, or of the piece.
        start: where step 0 lies in its source, in steps; negative where a pickup was filled up.
    """

    steps: Steps
    velocities: Steps
    meter: Meter = COMMON_TIME
    tempo: float = 120.0
    key: int | None = None
    program: int = 0
    name: str = ""
    start: int = 0

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def num_bars(self) -> int:
        return len(self) // self.meter.steps

    @property
    def num_notes(self) -> int:
        return int((self.steps >= LOWEST_KEY).sum())

    @property
    def pitches(self) -> NDArray[np.int64]:
        """MIDI numbers of the notes, in order."""
        return self.steps[self.steps >= LOWEST_KEY].astype(np.int64) + MIN_PITCH - LOWEST_KEY

    def bars(self, first: int, last: int) -> Melody:
        """Bars `first` to `last`, counted from 1, both included.

        Raises:
            UsageError: the melody has no such bars.
        """
        if not 1 <= first <= last <= self.num_bars:
            raise UsageError(f"bars {first}:{last}: the melody has bars 1:{self.num_bars}")
        cut = slice((first - 1) * self.meter.steps, last * self.meter.steps)
        return replace(
            self,
            steps=self.steps[cut],
            velocities=self.velocities[cut],
            start=self.start + cut.start,
        )

    def transposed(self, semitones: int) -> Melody:
        """The same, higher; what would leave the keyboard turns back by octaves."""
        if not semitones:
            return self
        steps = self.steps.copy()
        sounding = steps >= LOWEST_KEY
        steps[sounding] = to_values(self.pitches + semitones)
        return replace(self, steps=steps)

    def padded(self, num_steps: int) -> Melody:
        """The same, with silence after it up to a length, or cut to it."""
        missing = num_steps - len(self)
        if missing <= 0:
            return replace(
                self, steps=self.steps[:num_steps], velocities=self.velocities[:num_steps]
            )
        steps = np.concatenate([self.steps, np.zeros(missing, np.uint8)])
        if len(self) and sounds_at_end(self.steps):
            steps[len(self)] = NOTE_OFF
        velocities = np.concatenate([self.velocities, np.zeros(missing, np.uint8)])
        return replace(self, steps=steps, velocities=velocities)


class Notes(NamedTuple):
    """Columns, one row a note: onset and end in steps, MIDI number, velocity."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    pitch: NDArray[np.int64]
    velocity: NDArray[np.int64]


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
        kept, until, top = [], 0, 0
        rows = zip(start.tolist(), end.tolist(), pitch.tolist(), strict=True)
        for i, (s, e, p) in enumerate(rows):
            if s < until - 1 and p < top:
                continue
            kept.append(i)
            until, top = e, p
        start, end, pitch, velocity = (c[kept] for c in (start, end, pitch, velocity))
    end = np.minimum(end, np.append(start[1:], np.iinfo(np.int64).max))
    return Notes(start, end, pitch, velocity)


def to_values(pitches: NDArray[np.int64]) -> Steps:
    """MIDI numbers to values of steps; what no piano has moves by octaves until one has it."""
    low = np.maximum(-(-(MIN_PITCH - pitches) // 12), 0)
    high = np.maximum(-(-(pitches - MAX_PITCH) // 12), 0)
    return (pitches + 12 * (low - high) - MIN_PITCH + LOWEST_KEY).astype(np.uint8)


def write_steps(notes: Notes, length: int) -> tuple[Steps, Steps]:
    """Notes that do not overlap, in order, to steps and velocities `(length,)`."""
    steps, velocities = np.zeros(length, np.uint8), np.zeros(length, np.uint8)
    steps[notes.end[notes.end < length]] = NOTE_OFF
    steps[notes.start] = to_values(notes.pitch)
    velocities[notes.start] = np.clip(notes.velocity, 1, 127)
    return steps, velocities


def read_steps(steps: Steps, velocities: Steps | None = None, *, velocity: int = 80) -> Notes:
    """Steps `(T,)` to the notes that they hold; the last one ends with the steps at the latest."""
    start = np.flatnonzero(steps >= LOWEST_KEY)
    events = np.append(np.flatnonzero(steps != NO_EVENT), len(steps))
    end = events[np.searchsorted(events, start, side="right")]
    loud = np.full(len(start), velocity) if velocities is None else velocities[start].astype(int)
    loud[loud == 0] = velocity
    return Notes(start, end, steps[start].astype(np.int64) + MIN_PITCH - LOWEST_KEY, loud)


def sounds_at_end(steps: Steps) -> bool:
    """Whether a note is still held when the steps end."""
    events = steps[steps != NO_EVENT]
    return bool(len(events)) and int(events[-1]) >= LOWEST_KEY


def canonical(steps: Steps) -> Steps:
    """The shortest way to write what sounds: no note-off where nothing does."""
    events = np.flatnonzero(steps != NO_EVENT)
    values = steps[events]
    before = np.concatenate([[NOTE_OFF], values[:-1]])
    idle = events[(values == NOTE_OFF) & (before == NOTE_OFF)]
    if not len(idle):
        return steps
    steps = steps.copy()
    steps[idle] = NO_EVENT
    return steps


def windows(melody: Melody, num_bars: int, *, hop: int) -> list[Steps]:
    """Pieces of `num_bars` bars as a model bars them, one every `hop` bars, padded with silence.

    The last piece is the one that reaches the melody's end.
    """
    bar = KNOWN_METERS[meter_class(melody.meter)].steps
    size = num_bars * bar
    num = max(math.ceil((len(melody) - size) / (hop * bar)), 0) + 1
    whole = melody.padded((num - 1) * hop * bar + size)
    return [whole.steps[at : at + size] for at in range(0, num * hop * bar, hop * bar)]
