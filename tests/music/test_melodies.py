"""Melodies as a data type, what is counted in them, and what models make of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import torch
from ae_music.datasets import title_of
from ae_music.grid import (
    LOWEST_KEY,
    canonical,
)
from ae_music.latent import attributes, blend
from ae_music.latent.evaluate import shifted, total_variation
from ae_music.modality import Melodies, has_pickup, melody_of, octave_shift
from tunes import JIG, OTHER_JIG, SAMPLES, A, B, melody, read

from ae_toolkit import UsageError, fit, load
from ae_toolkit.data.examples import load_data
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import named
from ae_toolkit.testing.contracts import check_modality


def test_data_type_keeps_its_contract(tmp_path: Path) -> None:
    check_modality(
        Melodies(bars=2, transpose=5), [read(A).bars(1, 2), read(B).bars(3, 4)], tmp_path
    )


def test_transposition_stays_on_the_keyboard_and_fades() -> None:
    modality = Melodies(bars=2, transpose=6, transposed=(1.0, 0.0))
    high = melody((0, 4, 107), (4, 8, 100), (8, 16, 105))
    y = modality.prepare(torch.stack([modality.segments(high)[0].y] * 500))
    y = torch.where(y >= LOWEST_KEY, y + 36, y)  # where the register would not have put it
    source = Source(0, "test")
    moved = modality.augment(y, source.step(0, progress=0.0))
    sounding = y >= LOWEST_KEY
    by = (moved - y)[sounding].reshape(500, -1)
    assert (by == by[:, :1]).all(), "one melody, one transposition"
    assert moved.max() < 90 and by.min() == -6 and by.max() == 1
    assert torch.equal(moved[~sounding], y[~sounding])
    assert torch.equal(modality.augment(y, source.step(0, progress=1.0)), y)


def test_windows_are_the_same_in_any_key_and_of_one_title() -> None:
    modality = Melodies(bars=2)
    tune = melody((0, 4, 70), (4, 8, 72), (12, 20, 74))
    rows = [modality.segments(tune.transposed(k))[0].y for k in (0, 3, 5)]
    other = modality.segments(melody((0, 4, 70), (4, 8, 73), (12, 20, 74)))[0].y
    prints = modality.fingerprints(torch.stack([*rows, other]))
    assert prints[0] == prints[1] == prints[2] != prints[3]
    assert title_of(melody((0, 1, 60), name="DEVIL'S DREAM -- REEL.")) == title_of(
        melody((0, 1, 60), name="Devils Dream, The")
    )


def test_a_bass_line_is_seen_in_the_register_and_given_back_in_its_own() -> None:
    modality, low = Melodies(bars=1), melody((0, 4, 36), (4, 8, 43), (8, 16, 40), program=33)
    (example,) = modality.segments(low)
    assert octave_shift(low) == 3 and example.y.max() - LOWEST_KEY + 21 == 79
    back = modality.join([example.y.long()], like=low)
    assert [n.pitch for n in back.instruments[0].notes] == [36, 43, 40]
    assert back.instruments[0].program == 33


def test_steps_beyond_a_meter_are_not_judged() -> None:
    y, mask = torch.tensor([[40, 0, 42, 0]] * 2), torch.tensor([[True, True, False, False]] * 2)
    made = torch.tensor([[40, 0, 9, 9], [40, 9, 42, 0]])
    found = Melodies(bars=1).metrics(y, made, mask)
    assert found["accuracy"].tolist() == [1, 0.5] and found["exact"].tolist() == [1, 0]


def test_loudness_is_the_originals_where_it_has_a_note() -> None:
    tune = melody((0, 4, 70), (4, 8, 72), (8, 16, 74))
    tune.velocities[[0, 4, 8]] = [30, 60, 120]
    other = melody((0, 4, 71), (6, 8, 70), (8, 16, 75))
    made = Melodies(bars=1).melody([torch.from_numpy(other.steps)], like=tune)
    assert made.velocities[[0, 6, 8]].tolist() == [30, 60, 120]


def test_blends_are_aligned_by_bar() -> None:
    modality = Melodies(bars=2)
    plain, jig = read(A), read(JIG)
    upbeat = read(SAMPLES / "miss-mcleods-reel.mid")
    assert has_pickup(upbeat) and has_pickup(jig) and not has_pickup(plain)
    first, second = modality.align(plain, upbeat)
    assert first is plain and np.array_equal(second.steps, upbeat.bars(2, 17).steps)
    both = modality.align(upbeat, upbeat)
    assert both == (upbeat, upbeat)
    _, barred = modality.align(plain, jig)
    assert barred.meter == plain.meter and barred.num_notes == jig.bars(2, 33).num_notes


@pytest.mark.parametrize(
    ("name", "notes", "expected"),
    [
        ("density", [(0, 1, 60), (4, 5, 62)], 2 / 16),
        ("diatonic", [(0, 1, 60), (4, 5, 62), (8, 9, 64), (12, 13, 61)], 3 / 4),
        ("diatonic", [(0, 1, 66), (4, 5, 67), (8, 9, 74)], 1.0),
        ("interval", [(0, 1, 60), (4, 5, 67), (8, 9, 64)], 5.0),
        ("pitch-range", [(0, 1, 60), (4, 5, 67), (8, 9, 64)], 7.0),
        ("syncopation-16th", [(0, 1, 60), (3, 4, 62), (4, 5, 62), (5, 6, 60)], 1 / 4),
        ("syncopation-8th", [(0, 1, 60), (6, 7, 62), (8, 9, 62), (10, 11, 60)], 1 / 4),
    ],
)
def test_attributes(name: str, notes: list[tuple[int, int, int]], expected: float) -> None:
    steps = melody(*notes).steps
    row = np.zeros((1, 18), np.uint8)
    row[0, :16] = steps
    found = attributes.measure(row, np.array([0]), bars=1)
    assert found[name][0] == pytest.approx(expected)


def test_total_variation() -> None:
    assert total_variation(np.array([1, 1, 2]), np.array([1, 1, 2, 1, 1, 2])) == 0
    assert total_variation(np.array([-3, -3]), np.array([4])) == 1
    assert total_variation(np.array([0, 1]), np.array([0, 0])) == pytest.approx(0.5)


def test_tidy_leaves_no_idle_note_off() -> None:
    steps = np.array([1, 0, 40, 0, 1, 1, 0, 41], np.uint8)
    assert canonical(steps).tolist() == [0, 0, 40, 0, 1, 0, 0, 41]


def test_python_takes_and_gives_pretty_midi() -> None:
    a, b = (pretty_midi.PrettyMIDI(str(path)) for path in (A, B))
    model = load("melody-2bar")
    walk = model.interpolate(a, b, steps=9)
    assert len(walk) == 9 and all(isinstance(step, pretty_midi.PrettyMIDI) for step in walk)
    ends = [melody_of(step) for step in (walk[0], walk[-1])]
    for made, path in zip(ends, (A, B), strict=True):
        original = read(path)
        assert len(made) == len(original) and made.meter == original.meter
        assert (made.steps == original.steps).mean() > 0.97
    again = model.reconstruct([a])[0]
    assert (melody_of(again).steps == melody_of(walk[0]).steps).all()
    assert len(model.sample(3, {"meter": 3}, seed=1)) == 3
    with pytest.raises(UsageError, match=r"a melody is a pretty_midi.PrettyMIDI, not a str"):
        model.encode(["tune.mid"])


@pytest.mark.parametrize("bars", ["2", "16"])
def test_no_bar_of_a_blend_is_empty(bars: str) -> None:
    model = blend.load_melody_model(f"melody-{bars}bar", "cpu")
    walk = blend.blend(model, read(A).bars(1, 4), read(B).bars(1, 11), steps=8)
    assert [m.num_bars for m in walk] == [4, 5, 6, 7, 8, 9, 10, 11]
    for made in walk:
        notes = (made.steps.reshape(made.num_bars, -1) >= LOWEST_KEY).sum(1)
        assert notes.min() > 0, notes


def test_shift_raises_density_in_most_held_out_windows() -> None:
    shipped = load("melody-2bar").config.card["metrics"]["melodies"]
    assert shipped["shift"]["density"]["raised"] >= 0.9


@pytest.mark.slow
def test_shift_raises_density_as_the_card_says(real_tunes: Path) -> None:
    model = load("melody-2bar")
    windows = load_data(model.recipe, model.modality, "test")
    measured = shifted(model, windows, num=200, seed=1)["density"]
    shipped = model.config.card["metrics"]["melodies"]["shift"]["density"]
    assert measured["raised"] == pytest.approx(shipped["raised"], abs=0.07)
    assert measured["hamming"] == pytest.approx(shipped["hamming"], abs=0.07)


def test_blend_keeps_every_bar_of_both_ends() -> None:
    model = blend.load_melody_model("melody-16bar", "cpu")
    walk = blend.blend(model, read(JIG), read(OTHER_JIG), steps=3)
    assert [m.num_bars for m in walk] == [33, 33, 33]
    assert walk[0].num_notes == read(JIG).num_notes


@pytest.mark.slow
def test_golden_run(tmp_path: Path) -> None:
    """36 steps on the bundled tunes, seeded: the distortion falls to where it fell before."""
    recipe = named("melody-2bar").with_(
        {
            "data": {"name": "tunes-sample"},
            "train.epochs": 3,
            "train.precision": "fp32",
        }
    )
    run = fit(recipe, tmp_path / "r", progress=False)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    learned = [row["distortion"] for row in rows if row["split"] == "validation"]
    assert learned == sorted(learned, reverse=True)
    assert learned[-1] == pytest.approx(50.3, abs=2)
