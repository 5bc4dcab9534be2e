"""Every `ae music` command, on the bundled weights."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import symusic
import torch
from ae_music.grid import KNOWN_METERS, LOWEST_KEY, Melody, Meter
from ae_music.latent import blend
from ae_music.midi.write import to_midi
from ae_music.modality import Melodies, octave_shift
from click.testing import CliRunner
from tunes import CHORALE, JIG, OTHER_JIG, SAMPLES, A, B, melody, notes_of, read

from ae_toolkit import RunError
from ae_toolkit.cli.app import main
from ae_toolkit.files import printable
from ae_toolkit.recipe import named


def test_generic_verbs_take_whole_melodies(ae, tmp_path: Path) -> None:
    ae("reconstruct", "melody-2bar", A, JIG, "-o", "back")
    assert len(read(Path("back/garryowen.mid"))) == len(read(JIG))
    ae("encode", "melody-2bar", A, JIG, "-o", "z.npz")
    with np.load("z.npz") as arrays:
        assert len(arrays["z"]) == len(arrays["names"]) == 8 + 17
        assert arrays["label.meter"].tolist() == [0] * 8 + [3] * 17
    ae("decode", "melody-2bar", "z.npz", "-o", "decoded")
    assert sorted(path.name for path in Path("decoded").iterdir()) == [A.name, JIG.name]
    made = read(Path("decoded/garryowen.mid"))
    assert made.meter == Meter(6, 8) and made.num_bars == 33
    again = read(Path("back/garryowen.mid"))
    assert (made.steps[: len(again)] == again.transposed(12 * octave_shift(again)).steps).all()
    ae("sample", "melody-2bar", "-n", 2, "-o", "new", "--label", "meter=4")
    assert read(Path("new/0001.mid")).meter == Meter(9, 8)
    assert "as a label it is a class" in ae("sample", "melody-2bar", "-o", "x", code=2).output
    ae("interpolate", "melody-2bar", A, B, "-o", "walk.mid", "--steps", 3)
    assert notes_of(tmp_path / "walk.mid")[-1][0] < 48 * 16


def test_interpolate_writes_midi_sound_and_picture(ae, tmp_path: Path) -> None:
    arguments = ["-o", "out.mid", "--wav", "out.wav", "--png", "out.png", "--each", "steps"]
    result = ae("music", "interpolate", A, B, *arguments)
    assert "9 steps of 16 bars, 144 in all" in result.output
    made = notes_of(tmp_path / "out.mid")
    assert notes_of(tmp_path / "out.mid", bars=16) == _on_grid(A)
    assert [(at - 8 * 256, pitch) for at, pitch in made if at >= 8 * 256] == _on_grid(B)
    assert made[-1][0] < 144 * 16
    assert len(list(Path("steps").glob("*.mid"))) == 9
    assert Path("out.png").stat().st_size > 10_000 and Path("out.wav").stat().st_size > 1_000_000


def _on_grid(path: Path) -> list[tuple[int, int]]:
    """A sample's notes, from its first bar on, as the grid holds them."""
    tune = read(path)
    return list(
        zip(np.flatnonzero(tune.steps >= LOWEST_KEY).tolist(), tune.pitches.tolist(), strict=True)
    )


def test_interpolation_goes_from_a_to_b_without_turning_back(ae) -> None:
    report = json.loads(ae("music", "interpolate", A, B, "--json").stdout)
    rows = report["steps"]
    to_a, to_b = ([row[f"distance_to_{end}"] for row in rows] for end in "ab")
    assert to_a[0] == to_b[-1] == 0
    assert all(np.diff(to_a) >= -0.02) and all(np.diff(to_b) <= 0.02)


def test_jigs_keep_their_meter_tempo_and_instrument(ae, tmp_path: Path) -> None:
    for path, name, tempo, program in ((JIG, "a", 100, 40), (OTHER_JIG, "b", 140, 73)):
        tune = read(path)
        changed = Melody(tune.steps, tune.velocities, tune.meter, tempo, 7, program, name)
        to_midi([changed]).write(str(tmp_path / f"{name}.mid"))
    ae("music", "interpolate", "a.mid", "b.mid", "--steps", 3, "-o", "out.mid")
    score = symusic.Score(tmp_path / "out.mid")
    assert [(m.numerator, m.denominator) for m in score.time_signatures] == [(6, 8)]
    assert [round(t.qpm) for t in score.tempos] == [100, 118, 140]
    assert {track.program for track in score.tracks} == {40, 73}
    assert [k.key for k in score.key_signatures] == [1]


def test_two_meters_and_what_was_done_about_it(ae) -> None:
    said = ae("music", "interpolate", A, JIG, "--steps", 3).stderr
    assert "is in 6/8" in said and "get bar lines in 2/2" in said
    assert said.count("6/8") == 1


def test_silence_and_bar_lines_survive_the_generic_verbs(ae, tmp_path: Path) -> None:
    modality = Melodies(bars=2)
    silence = modality.from_tensor(torch.zeros(36, dtype=torch.long), labels={"meter": 3})
    late = torch.zeros(36, dtype=torch.long)
    late[8], late[16] = 40, 42
    modality.write([silence, modality.from_tensor(late, labels={"meter": 0})], tmp_path / "s.mid")
    assert notes_of(tmp_path / "s.mid") == [(12 + 8, 59), (12 + 16, 61)]
    modality.figure({"": [silence]}, tmp_path / "s.png")


def test_an_exported_model_keeps_its_directions(ae, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AE_DATA", "/nowhere")
    ae("export", "melody-2bar", "-o", "mine")
    ae("music", "shift", A, "--model", "mine", "--density", 1)


@pytest.mark.slow
def test_long_output_is_written_coarsely_or_refused(ae, tmp_path: Path) -> None:
    ae("music", "interpolate", JIG, OTHER_JIG, "--steps", 200, "-o", "long.mid")
    assert symusic.Score(tmp_path / "long.mid").ticks_per_quarter in (96, 480)
    tune = read(A)
    steps = np.tile(tune.steps, 2000)
    velocities = np.tile(tune.velocities, 2000)
    with pytest.raises(RunError, match="more than one MIDI file can be made of"):
        to_midi([Melody(steps, velocities, tune.meter)] * 2)


def test_what_is_too_long_is_refused_before_a_model_is_loaded(
    ae, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blend, "load_melody_model", lambda *_: pytest.fail("is loaded"))
    for long in (["-n", 1000, "--bars", 512], ["-n", 1000, "--like", "rocky-road-to-dublin"]):
        said = ae("music", "sample", *long, code=1).output
        assert "bars of 4/4 are more than one MIDI file" in said


def test_identical_inputs_and_different_lengths(ae) -> None:
    rows = json.loads(ae("music", "interpolate", A, A, "--json", "--steps", 3).stdout)["steps"]
    assert rows[1]["distance_to_a"] < 0.03
    arguments = ["--bars", "1:5", "--bars", "1:12", "--steps", 8, "--json"]
    rows = json.loads(ae("music", "interpolate", A, B, *arguments).stdout)["steps"]
    assert [row["bars"] for row in rows] == [5, 6, 7, 8, 9, 10, 11, 12]


def test_a_voice_of_a_chorale_and_the_others_beneath(ae, tmp_path: Path) -> None:
    pair = [CHORALE, CHORALE, "--track", "Tenor", "--track", "1", "--steps", 3]
    ae("music", "interpolate", *pair, "-o", "plain.mid")
    ae("music", "interpolate", *pair, "-o", "full.mid", "--keep-accompaniment")
    plain, full = notes_of(tmp_path / "plain.mid"), notes_of(tmp_path / "full.mid")
    tenor, soprano = (
        next(m.pitches.tolist() for m in blend_tracks(CHORALE, name)) for name in ("Tenor", "1")
    )
    played = [pitch for _, pitch in plain]
    assert played[: len(tenor)] == tenor and played[-len(soprano) :] == soprano
    others = 36 + 42 + 41
    assert len(full) == pytest.approx(len(plain) + 3 * others, abs=6)


def blend_tracks(path: Path, track: str) -> list[Melody]:
    from ae_music.midi.extract import melodies_of
    from ae_music.midi.score import read_score

    return melodies_of(read_score(path), track=track)


def test_sample_by_meter_and_length(ae, tmp_path: Path) -> None:
    for meter in map(str, KNOWN_METERS):
        ae("music", "sample", "-n", 2, "--meter", meter, "-o", "new.mid", "--seed", 3)
        score = symusic.Score(tmp_path / "new.mid")
        assert [(m.numerator, m.denominator) for m in score.time_signatures] == [
            tuple(map(int, meter.split("/")))
        ]
    assert "1 melody of 20 bars" in ae("music", "sample", "--bars", 20, "-n", 1).output


def test_neighbours(ae) -> None:
    ae("music", "vary", A, "-n", 2, "-o", "v.mid", "--png", "v.png")
    made = notes_of(Path("v.mid"))
    original, *varied = (
        [(at - start, pitch) for at, pitch in made if start <= at < start + 256]
        for start in (0, 256, 512)
    )
    assert original == _on_grid(A) and len({*map(tuple, [original, *varied])}) == 3
    ae("music", "sample", "--like", A, "--spread", 0, "-n", 1, "-o", "same.mid")
    same = dict(notes_of(Path("same.mid")))
    assert np.mean([same.get(at) == pitch for at, pitch in _on_grid(A)]) > 0.95


def test_shift_says_what_changed(ae) -> None:
    report = json.loads(ae("music", "shift", A, "--density", -2, "--json").stdout)
    assert report["after"]["density"] < report["before"]["density"]
    assert 0 < report["hamming"] <= 1 and report["asked"] == {"density": -2}
    output = ae("music", "shift", JIG, "--syncopation", 1, "--pitch-range", "+1").output
    assert output.count("asked: +1") == 3


def test_shift_goes_no_further_than_there_are_notes(
    ae, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for far in ("nan", "inf", "1e30", "-11"):
        said = ae("music", "shift", A, "--density", far, "-o", "out.mid", code=2).output
        assert "Invalid value for '--density'" in said
    silence = Melody(np.zeros(32, np.uint8), np.zeros(32, np.uint8))
    monkeypatch.setattr(blend, "shift", lambda *_: silence)
    said = ae("music", "shift", A, "--density", "-10", "-o", "out.mid", code=1).output
    assert "shifted so far, it has no notes" in said and not os.listdir(tmp_path)


def test_info(ae) -> None:
    output = ae("music", "info", CHORALE).output
    assert "* track 1: Soprano" in output and "  track 4: Bass" in output
    report = json.loads(ae("music", "info", JIG, "--json").output)
    (section,) = report["sections"]
    assert section["meter"] == "6/8" and section["pickup"] and section["bars"] == "1:33"
    assert "garryowen" in ae("music", "info").output


def test_info_says_why_and_what_is_lost(ae, tmp_path: Path) -> None:
    tune = to_midi([melody(*((4 * i, 4 * i + 4, 60 + i % 5) for i in range(32)), name="Vocals")])
    for note in tune.instruments[0].notes:
        note.start += 1 / 16  # half a sixteenth
        note.end += 1 / 16
    tune.instruments.append(to_midi([melody((0, 128, 90))]).instruments[0])
    tune.write("late.mid")
    output = ae("music", "info", "late.mid").output
    assert "* track 1: Vocals" in output and "* is named 'Vocals'" in output
    assert "100% of the notes begin off the grid of sixteenths, all by 0.50 of one" in output
    report = json.loads(ae("music", "info", "late.mid", "--json").output)
    assert report["chosen"] == "named 'Vocals'" and report["off_grid"] == 1
    said = ae("music", "vary", "late.mid", "-n", 1).stderr
    assert said.count("late.mid: 100% of the notes begin off the grid") == 1


def test_a_melody_may_change_its_tempo_or_meter(ae) -> None:
    """Its longest section is the second, and no comparison of arrays finds it."""
    first = melody(*((4 * i, 4 * i + 4, 60 + i % 5) for i in range(16)), tempo=120.0)
    longer = melody(*((4 * i, 4 * i + 4, 65 - i % 5) for i in range(32)), tempo=80.0)
    assert first != longer and longer in [first, longer] and [first, longer].index(longer) == 1
    Melodies().write([first, longer], Path("two.mid"))
    for verb in (("vary", "two.mid"), ("sample", "--like", "two.mid")):
        said = ae("music", *verb, "-n", 1, "-o", "out.mid").stderr
        assert "has 2 sections; the longest was taken, bars 5:12" in said


def test_many_files_where_bad_ones_are_skipped(ae, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("one", "two"):
        Melodies().write([melody((0, 4, 60), (4, 16, 64))], folder / f"{name}.mid")
    (folder / "broken.mid").write_bytes(b"MThd")
    for verb, ending in (
        (("vary", "in", "-n", 1), "mid"),
        (("shift", "in", "--density", 1), "mid"),
        (("render", "in"), "wav"),
    ):
        result = CliRunner().invoke(main, ["music", *map(str, verb), "-o", verb[0]])
        assert result.exit_code == 1 and "skipped 1 of 3 files" in result.stderr
        assert "in/broken.mid: is cut short" in result.stderr
        written = sorted(path.name for path in (tmp_path / verb[0]).iterdir())
        assert written == [f"one.{ending}", f"two.{ending}"]
    result = CliRunner().invoke(main, ["music", "info", "in", "--json"])
    assert result.exit_code == 1 and len(json.loads(result.stdout)) == 2
    vary = ["music", "vary", folder / "one.mid", folder / "two.mid", "-n", 1]
    ae(*vary, "-o", "vary")  # what we wrote is replaced
    stranger = tmp_path / "vary/two.mid"
    stranger.write_bytes(A.read_bytes())
    assert "two.mid: exists already" in ae(*vary, "-o", "vary", code=2).output
    assert stranger.read_bytes() == A.read_bytes()
    assert "go into a folder" in ae(*vary, code=2).output


def test_results_appear_together_and_replace_nothing_of_others(ae, tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps/blend-01.mid").write_bytes(b"mine")
    walk = ["music", "interpolate", A, B, "--steps", 3]
    said = ae(*walk, "--each", "steps", "--png", "blend.png", code=2).output
    assert "steps/blend-01.mid: exists already" in said
    assert [path.name for path in tmp_path.rglob("*")] == ["steps", "blend-01.mid"]
    ae(*walk, "--each", "steps", "--overwrite")
    ae(*walk, "--each", "steps")
    assert len(list((tmp_path / "steps").iterdir())) == 3
    Path("a.mid").write_bytes(A.read_bytes())
    Path("blend.mid").write_bytes(A.read_bytes())
    assert "blend.mid: exists already" in ae(*walk, code=2).output
    said = ae("music", "interpolate", "a.mid", B, "-o", "a.mid", code=2).output
    assert "a.mid: is an input" in said and Path("a.mid").read_bytes() == A.read_bytes()


def test_what_would_sound_better_is_said_once(ae, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for name in ("one", "two"):
        Melodies().write([melody((0, 4, 60), (4, 16, 64))], Path(f"{name}.mid"))
    said = ae("music", "render", "one.mid", "two.mid", "-o", "out").stderr
    assert said.count("FluidSynth is missing") == 1


def test_a_piece_that_is_too_long_ends_no_batch(ae, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    note, far = melody((0, 4, 60), (4, 16, 64)), melody((0, 4, 60), (120_000, 120_016, 64))
    for name, written in (("one", note), ("two", note), ("long", far)):
        to_midi([written]).write(str(tmp_path / f"in/{name}.mid"))
    said = ae("music", "render", "in", "-o", "out", code=1, failed=False).output
    assert "in/long.mid: lasts 250.0 minutes" in said and "skipped 1 of 3 files" in said
    said = ae("music", "vary", "in", "-n", 3, "-o", "out", code=1, failed=False).output
    assert "in/long.mid: 30,004 bars of 4/4 are more than" in said
    names = ["one.mid", "one.wav", "two.mid", "two.wav"]
    assert sorted(os.listdir("out")) == names
    said = ae("music", "render", "in/long.mid", "-o", "long.wav", code=1).output
    assert "in/long.mid: lasts 250.0 minutes" in said


@pytest.mark.parametrize(
    ("verb", "ending"),
    [(["vary", "-n", 1], "mid"), (["shift", "--density", 1], "mid"), (["render"], "wav")],
)
def test_nothing_is_said_of_results_that_do_not_appear(
    verb: list[Any], ending: str, ae, tmp_path: Path
) -> None:
    taken = tmp_path / f"out/{B.stem}.{ending}"
    taken.parent.mkdir()
    taken.write_bytes(b"mine")
    refused = ae("music", *verb, JIG, B, "-o", "out", code=2)
    assert f"{taken.name}: exists already" in refused.stderr and not refused.stdout
    assert "FluidSynth" not in refused.stderr  # nothing was worked on
    assert os.listdir("out") == [taken.name]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no such names")
def test_names_are_shown_harmless_and_kept(ae, tmp_path: Path) -> None:
    stems = ["\x1b[31mred", "caf\udce9", "主旋律", "a\nb"]
    for stem in stems:
        path = tmp_path / f"{stem}.mid"
        to_midi([melody((0, 4, 60), (4, 16, 64))]).write(str(path))
        (again,) = Melodies().read(path)
        assert again.name == printable(stem)
        Melodies().write([again], tmp_path / "again.mid")
        assert read(tmp_path / "again.mid").name == printable(stem).replace("\n", "")
        json.loads(ae("music", "info", path, "--json").output)
    result = ae("music", "vary", *(f"{stem}.mid" for stem in stems), "-n", 1, "-o", "out\x1b")
    said = result.output + ae("music", "info", tmp_path).output
    assert "\x1b" not in said and "\\x1b[31mred" in said and "caf\\udce9" in said
    assert len([*Path("out\x1b").iterdir()]) == 4


@pytest.mark.slow
def test_train_on_a_folder_then_blend(ae, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in sorted((SAMPLES / "tunes").glob("*.mid"))[:12]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.mid").write_bytes(b"MThd\0")
    small = ["--set", "train.epochs=1", "--set", "encoder.width=16", "--set", "decoder.width=16"]
    result = ae("train", "melody-2bar", "--data", "mine", "--out", "r", "--quiet", *small)
    assert "skipped 1 of 13" in result.stderr
    again = ae("train", "melody-2bar", "--data", "mine", "--out", "r2", "--quiet", *small)
    assert "skipped 1 of 13" in again.stderr, "the report is kept with the cache"
    ae("music", "interpolate", A, B, "--model", "r", "--steps", 3, "-o", "out.mid")
    ae("music", "shift", A, "--model", "r", "--density", 1)
    report = json.loads(ae("music", "evaluate", "--model", "r", "--limit", 20, "--json").stdout)
    assert report["data"] == "files" and report["rate"] >= 0
    assert {"monotone_steps", "largest_step"} <= {*report["interpolation"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["melody-2bar-ar", "melody-2bar-rnn", "melody-16bar-rnn"])
def test_recipes_that_do_not_ship_train(ae, name: str, tmp_path: Path) -> None:
    recipe = named(name)
    small = ["--set", "train.epochs=0.05", "--set", "train.batch_size=16"]
    for part in ("encoder", "decoder"):
        small += ["--set", f"{part}.width=16"]
    ae("train", name, "--data", "tunes-sample", "--out", "r", "--quiet", *small)
    report = json.loads(ae("evaluate", "r", "--limit", 10, "--nll", 0, "--json").stdout)
    assert report["negative_elbo"] > 0 and recipe.likelihood.name == "categorical"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("interpolate A", 2, "needs two melodies, A and B"),
        ("interpolate A gone.mid", 2, "gone.mid: there is no such file"),
        ("interpolate A text.mid", 1, "text.mid: is not a MIDI file"),
        ("interpolate A B -o out.mp3", 2, "out.mp3: choose a name that ends in .mid"),
        ("interpolate A B --wav out.mp3", 2, "out.mp3: choose a name that ends in .wav"),
        ("interpolate A B --png out.txt", 2, "out.txt: choose a name that ends in .png"),
        ("interpolate A B --track 7", 2, "there is no track '7'"),
        ("interpolate A B --bars 7:5", 2, "--bars takes first:last"),
        ("interpolate A B --bars 1:900", 2, "bars 1:16, of 16 in all"),
        ("interpolate A B --bars 99", 2, "has 16 bars, and none with the number 99"),
        ("interpolate A B --bars 1 --bars 2 --bars 3", 2, "once for both files or twice"),
        ("interpolate A B --model mnist-2d", 2, "'ae music' needs one of melodies"),
        ("interpolate A B -o text.mid/out.mid", 1, "out.mid: cannot be written"),
        ("shift A", 2, "say what to shift"),
        ("sample --meter 5/4", 2, "--meter '5/4': choose from 4/4"),
        ("sample --meter waltz", 2, "--meter 'waltz'"),
        ("render A -o out.mid", 2, "choose a name that ends in .wav"),
        ("render text.mid -o out.wav", 1, "text.mid: is not a MIDI file"),
        ("info gone.mid", 2, "gone.mid: there is no such file"),
        ("evaluate --data nowhere", 2, "'nowhere' is neither a file or folder"),
    ],
)
def test_bad_input_gets_one_sentence(
    ae, tmp_path: Path, arguments: str, code: int, sentence: str
) -> None:
    (tmp_path / "text.mid").write_text("no music")
    before = sorted(tmp_path.rglob("*"))
    words = {"A": A, "B": B}
    result = ae("music", *(words.get(word, word) for word in arguments.split()), code=code)
    assert sentence in result.output.replace("\n", " ")
    assert sorted(tmp_path.rglob("*")) == before, "something half-written was left"
