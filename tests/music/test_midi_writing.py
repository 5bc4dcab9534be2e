"""Melodies there and back: written and read, cut into windows and joined."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ae_music.grid import KNOWN_METERS, Melody, Meter, Notes, write_steps
from ae_music.midi.write import to_midi
from ae_music.modality import Melodies, melody_of, octave_shift
from midi_events import (
    notes,
)

# There and back.

ALL_METERS = [
    *KNOWN_METERS,
    *(Meter(*m) for m in ((5, 4), (7, 8), (3, 8), (12, 8), (2, 2), (1, 4))),
]


def a_melody(seed: int, meter: Meter, num_bars: int) -> Melody:
    """Notes and rests of any length, also over bar lines, most of which bear an accent."""
    chance = np.random.default_rng(seed)
    at, rows = 0, []
    while at < num_bars * meter.steps:
        end = min(at + int(chance.integers(1, 9)), num_bars * meter.steps)
        bar_line = -(-(at + 1) // meter.steps) * meter.steps
        if chance.random() < 0.9 and bar_line < end:
            end = bar_line
        accent = 0 if at % meter.steps else 40
        rows.append((at, end, chance.integers(55, 90), 50 + accent + chance.integers(9)))
        at = end + (int(chance.integers(3)) if end % meter.steps and chance.random() < 0.2 else 0)
    steps, velocities = write_steps(Notes(*np.array(rows).T), num_bars * meter.steps)
    return Melody(
        steps,
        velocities,
        meter,
        60e6 / int(chance.integers(200_000, 1_500_000)),
        int(chance.integers(24)),
        int(chance.integers(128)),
        f"Tune {seed}",
    )


def assert_same(a: Melody, b: Melody) -> None:
    assert a.steps.tolist() == b.steps.tolist()
    assert a.velocities.tolist() == b.velocities.tolist()
    assert (a.meter, a.key, a.program, a.name) == (b.meter, b.key, b.program, b.name)
    assert a.tempo == pytest.approx(b.tempo, rel=1e-5)


@pytest.mark.parametrize("meter", ALL_METERS, ids=str)
def test_what_is_written_is_read_again(meter: Meter, tmp_path: Path) -> None:
    for seed in range(4):
        melody = a_melody(seed, meter, num_bars=3 + seed)
        Melodies().write([melody], tmp_path / "tune.mid")
        (again,) = Melodies().read(tmp_path / "tune.mid")
        assert_same(again, melody)
        assert_same(melody_of(to_midi([melody])), melody)


def test_real_tunes_are_the_same_when_written_and_read(tmp_path: Path) -> None:
    root = Path(os.environ.get("AE_DATA", "/nowhere")) / "midi"
    if not root.is_dir():
        pytest.skip("needs real tunes: set AE_DATA to the folder that holds midi/")
    files = [path for path in sorted(root.rglob("*.mid")) if "groove" not in path.parts]  # drums
    for path in files[:: max(len(files) // 12, 1)]:
        for melody in Melodies().read(path):
            Melodies().write([melody], tmp_path / "tune.mid")
            (again,) = Melodies().read(tmp_path / "tune.mid")
            assert_same(again, melody)


@pytest.mark.parametrize("meter", KNOWN_METERS, ids=str)
def test_windows_join_without_an_original(meter: Meter) -> None:
    """As codes are decoded whose file is not at hand: at 120, in the meter of their label."""
    modality, melody = Melodies(bars=2), a_melody(0, meter, num_bars=8)
    examples = modality.segments(melody)
    joined = modality.join([example.y for example in examples], labels=examples[0].labels)
    again = melody_of(joined)
    assert (again.meter, again.tempo) == (meter, 120)
    raised = melody.transposed(12 * octave_shift(melody))
    assert len(examples) == 4 and notes(again) == notes(raised)
    assert joined.get_end_time() == pytest.approx(notes(raised)[-1][1] / 8)


@pytest.mark.parametrize("meter", ALL_METERS, ids=str)
def test_windows_join_to_the_melody(meter: Meter) -> None:
    for bars in (1, 2, 16):
        modality = Melodies(bars=bars)
        for num_bars in (1, 2, 3, 5, 8):
            melody = a_melody(num_bars, meter, num_bars)
            held = melody.steps.copy()
            held[:: meter.steps] = 0  # over every bar line
            held[0] = melody.steps[0]
            for steps in (melody.steps, held):
                velocities = np.where(steps >= 2, melody.velocities, 0).astype(np.uint8)
                like = Melody(steps, velocities, meter, 90.0, 3, 5, "Tune")
                parts = [example.y for example in modality.segments(like)]
                assert_same(modality.melody(parts, like=like), like)
