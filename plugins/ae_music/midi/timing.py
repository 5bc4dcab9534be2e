"""Whether a melody's time fits the grid of sixteenths, and what to do where it does not.

A performance is played freely; triplets lie between the sixteenths; a recording may begin anywhere.
Whatever it is, every onset is moved to the nearest sixteenth, so a user is told.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ae_music.midi.score import Track

TOLERANCE_STEPS = 1 / 8  #: from the grid
MAX_OFF_SHARE = 0.05  #: of the onsets, of which nothing is said
MIN_FIT = 0.5  #: of the onsets off the grid, by which a finer grid explains them
MIN_SHIFTED = 0.9  #: of all onsets, by which their being late all alike does
MAX_EARLY_STEPS = 0.49  #: by which notes may be early; half a step early is half a step late

TRIPLET_STEPS = np.array([2, 4, 8, 10]) / 3  #: of eighths and of quarters, in steps from the beat
THIRTY_SECOND_STEPS = np.arange(4) + 0.5  #: of sixteenths


class Timing(NamedTuple):
    """How the onsets of a track lie to the grid of sixteenths.

    Attributes:
        off: share of them that lie further than `TOLERANCE_STEPS` from it.
        cause: "shifted", "triplets", "thirty-seconds" or "free"; "" where they fit.
        late: steps by which all are late alike, from -0.49 to 0.51; 0 where they are not.
        lost: how many begin on the same sixteenth as another that begins earlier or later.
    """

    off: float
    cause: str = ""
    late: float = 0.0
    lost: int = 0


TIMING_CURES = {
    "shifted": "to keep bar lines and rhythm, move the notes onto the beat in a sequencer",
    "triplets": "most of them as triplets, which it cannot hold; to keep those, write the tune in "
    "12/8 or 6/8 with a notation program",
    "thirty-seconds": "most of them as thirty-seconds, which it cannot hold; to keep those, double "
    "all lengths in a sequencer or notation program",
    "free": "to keep the rhythm, quantise to sixteenths in a sequencer or notation program, where "
    "the beats follow the music",
}


def timing_of(track: Track, *, tick: float = 0.0) -> Timing:
    """Measures a track; what is off by a tick, the exactness of its file, still fits.

    Args:
        track: with notes.
        tick: steps that its times are rounded to.
    """
    tolerance = max(TOLERANCE_STEPS, tick) + 1e-6
    off = np.abs(track.start - np.rint(track.start)) > tolerance
    turns = np.exp(2j * np.pi * track.start).mean()
    late = float(np.angle(turns)) / (2 * np.pi)
    if late < -MAX_EARLY_STEPS:
        late += 1
    if off.mean() <= MAX_OFF_SHARE:
        return Timing(float(off.mean()))
    moved = track.start - late
    beat = track.start[off] % 4

    def fit(places: NDArray[np.floating]) -> float:
        gap = np.abs(beat[:, None] - places)
        return float((np.minimum(gap, 4 - gap).min(1) <= tolerance).mean())

    fits = np.abs(moved - np.rint(moved)) <= tolerance
    if abs(late) > tolerance and fits.mean() >= MIN_SHIFTED:
        cause = "shifted"
    elif max(fit(TRIPLET_STEPS), fit(THIRTY_SECOND_STEPS)) <= MIN_FIT:
        cause = "free"
    else:
        cause = "triplets" if fit(TRIPLET_STEPS) > fit(THIRTY_SECOND_STEPS) else "thirty-seconds"
    late = late if cause == "shifted" else 0.0
    gaps, steps = np.diff(track.start), np.diff(track.on_grid(late=late).start)
    lost = int(((gaps > tolerance) & (steps == 0)).sum())
    return Timing(float(off.mean()), cause, late, lost)


def describe_timing(timing: Timing) -> str:
    """One sentence of what does not fit and what to do; empty where all fits."""
    if not timing.cause:
        return ""
    alike = f", all by {abs(timing.late):.2f} of one" if timing.cause == "shifted" else ""
    lost = f", where {timing.lost} are lost for others on theirs" if timing.lost else ""
    return (
        f"{timing.off:.0%} of the notes begin off the grid of sixteenths{alike}, and are moved to "
        f"it{lost}: {TIMING_CURES[timing.cause]}"
    )
