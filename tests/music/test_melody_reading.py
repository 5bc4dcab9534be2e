"""Which notes are the melody, where its bars are, and how its time lies to the grid."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
from ae_music.grid import COMMON_TIME
from ae_music.midi.choose import choose_track
from ae_music.midi.extract import melodies_of
from ae_music.midi.score import read_score
from ae_music.midi.timing import describe_timing, timing_of
from ae_music.modality import melody_of
from midi_events import (
    QUARTER,
    SCALE,
    SIXTEENTH,
    File,
    meta,
    meter,
    midi,
    name,
    notes,
    off,
    on,
    read,
    tempo,
    tune,
    write_midi,
)

from ae_toolkit import RunError, UsageError


@pytest.fixture
def file(tmp_path: Path) -> File:
    """Writes bytes, or events of one track, to a MIDI file."""
    return partial(write_midi, tmp_path)


# Bars: meters, tempi and pickups.


def test_a_change_of_meter_begins_a_melody(file: File) -> None:
    events = [meter(6, 3), *tune(*[60] * 6), meter(3, 2), *tune(*[62] * 9), meter(6, 3)]
    first, second, third = read(file([*events, *tune(*[64] * 6)]))
    assert [m.meter for m in (first, second, third)] == [(6, 8), (3, 4), (6, 8)]
    assert [m.num_bars for m in (first, second, third)] == [2, 3, 2]
    assert [m.start for m in (first, second, third)] == [0, 24, 60]
    same = read(file([meter(3, 2), *tune(*[60] * 6), meter(3, 2), *tune(*[60] * 6)]))
    assert [m.num_bars for m in same] == [4]


def test_a_meter_or_a_tempo_after_the_last_note_is_none(file: File) -> None:
    (melody,) = read(file([*SCALE, tempo(5, after=960), meter(3, 2), meter(3, 2, after=960)]))
    assert (melody.meter, melody.tempo) == (COMMON_TIME, 120.0)
    (melody,) = read(file([*SCALE, meter(3, 2)]))
    assert (melody.meter, melody.num_bars) == (COMMON_TIME, 1)


@pytest.mark.parametrize(("pickup", "power", "beats"), [(4, 2, 1), (12, 2, 3), (6, 3, 3)])
def test_a_pickup_written_as_a_bar(file: File, pickup: int, power: int, beats: int) -> None:
    upbeat = tune(55, steps=pickup)
    bars = tune(*[60, 62, 64, 65] * 3)
    (melody,) = read(file([meter(beats, power), *upbeat, meter(4, 2), *bars]))
    assert (melody.meter, melody.num_bars) == (COMMON_TIME, 4)
    assert notes(melody)[:2] == [(16 - pickup, 16, 55), (16, 20, 60)]
    left = 4 - pickup // 4
    last = [meter(left, 2), *tune(*[60] * left)] if pickup % 4 == 0 else []
    (melody,) = read(file([meter(beats, power), *upbeat, meter(4, 2), *bars, *last]))
    assert melody.num_bars == 4 + bool(last)


def test_a_bar_that_is_shorter_begins_what_follows(file: File) -> None:
    bars, half = tune(*[60] * 16), tune(62, 64)
    first, second = read(file([meter(4, 2), *bars, meter(2, 2), *half, meter(4, 2), *bars]))
    assert (first.num_bars, second.num_bars) == (4, 5)
    assert notes(second)[:3] == [(8, 12, 62), (12, 16, 64), (16, 20, 60)]


@pytest.mark.parametrize("bar", [12, 16])
@pytest.mark.parametrize("pickup", [2, 4])
def test_accents_tell_a_pickup(file: File, bar: int, pickup: int) -> None:
    """As abc2midi writes: bars begin louder, at 105, and the first is not filled up."""
    events = tune(67, steps=pickup)
    for _ in range(6):
        events += tune(60, steps=2, velocity=105) + tune(62, *[64] * (bar // 2 - 2), steps=2)
    (melody,) = read(file([meter(bar // 4, 2), *events]))
    assert notes(melody)[:2] == [(bar - pickup, bar, 67), (bar, bar + 2, 60)]
    assert (melody.num_bars, melody.start) == (7, pickup - bar)
    (told,) = read(file([meter(bar // 4, 2), *events]), knows_bars=True)
    assert notes(told)[0] == (0, pickup, 67)


def test_a_tempo_that_lasts_begins_a_melody_and_a_slowing_down_does_not(file: File) -> None:
    bar = tune(60, 62, 64, 65)
    first, second = read(file([tempo(120), *bar * 4, tempo(80), *bar * 4]))
    assert (first.tempo, second.tempo) == (120, 80) and first.num_bars == second.num_bars == 4
    slowing = [e for i in range(8) for e in (tempo(110 - 5 * i), *tune(60 + i))]
    (melody,) = read(file([tempo(120), *bar * 14, *slowing]))
    assert melody.num_bars == 16 and 112 < melody.tempo < 120
    repeated = [*[tempo(120), *bar] * 4, *[tempo(80), *bar] * 4]
    assert [m.tempo for m in read(file(repeated))] == [120, 80]
    (melody,) = read(file([tempo(10), *bar, tempo(2000), *bar]))
    assert melody.tempo == 10


def test_bars_go_on_where_the_tempo_changes_within_one(file: File) -> None:
    beats = tune(*[60, 62, 64, 65] * 4)
    first, second = read(file([tempo(120), *beats, *beats[:4], tempo(60), *beats[4:], *beats]))
    assert (first.num_bars, second.num_bars, second.start) == (5, 8, 64)
    assert notes(second)[0] == (8, 12, 64) and (first.tempo, second.tempo) == (120, 60)


@pytest.mark.parametrize("after", [1, 59, 61, 119])
def test_a_tempo_between_two_steps_counts_from_the_nearest(file: File, after: int) -> None:
    (melody,) = read(file([tempo(90, after=after), *tune(*[60] * 16)]))
    assert melody.tempo == pytest.approx(90, rel=1e-5 if after < SIXTEENTH / 2 else 0.01)


# Which notes: the skyline, and the track.


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0, 8, 60), (0, 8, 64), (0, 8, 67)], [(0, 8, 67)]),  # a chord
        ([(0, 16, 72), (4, 8, 60), (8, 12, 64)], [(0, 16, 72)]),  # beneath a held note
        ([(0, 16, 48), (4, 8, 72)], [(0, 4, 48), (4, 8, 72)]),  # above a held note
        ([(0, 4.5, 72), (4, 8, 60)], [(0, 4, 72), (4, 8, 60)]),  # legato by a thirty-second
        ([(0, 5, 72), (4, 8, 60)], [(0, 4, 72), (4, 8, 60)]),  # by a sixteenth
        ([(0, 6, 72), (4, 8, 60)], [(0, 6, 72)]),
        ([(0, 8, 72), (4, 12, 72)], [(0, 4, 72), (4, 12, 72)]),  # struck again
        ([(0, 3.8, 60), (3.9, 8, 62)], [(0, 4, 60), (4, 8, 62)]),  # not quite on the grid
        ([(0, 0.3, 60), (0.4, 8, 62)], [(0, 8, 62)]),  # two on one step: the higher
        ([(0, 4, 20), (4, 8, 110)], [(0, 4, 32), (4, 8, 98)]),  # beyond the keyboard
    ],
)
def test_skyline(
    file: File, rows: list[tuple[float, float, int]], expected: list[tuple[int, int, int]]
) -> None:
    events = sorted(
        (round(at * SIXTEENTH), is_on, pitch)
        for start, end, pitch in rows
        for at, is_on in ((start, True), (end, False))
    )
    moments = np.diff([0, *(at for at, _, _ in events)]).tolist()
    made = [
        on(pitch, after=after) if is_on else off(pitch, after=after)
        for (_, is_on, pitch), after in zip(events, moments, strict=True)
    ]
    (melody,) = read(file(made))
    assert notes(melody) == expected


def test_which_track(file: File) -> None:
    path = file(
        midi(
            [name("Conductor"), meter(3, 2)],
            [name("Bass"), *tune(*[40] * 6)],
            [name("Tenor Voice"), *tune(*[72] * 6)],
            [name("Kit"), *tune(*[50] * 12, channel=9)],
            [name("Bell"), *tune(96)],  # the highest, but with too few notes
        )
    )

    def first(track: str | None) -> tuple[str, int]:
        (melody,) = read(path, track=track)
        return melody.name, int(melody.pitches[0])

    assert first(None) == ("Tenor Voice", 72)
    assert first("1") == first("bass") == ("Bass", 40)
    assert first("2") == first("voice") == ("Tenor Voice", 72)
    assert first("all") == ("all", 96)
    for wrong in ("5", "0", "²", "Violin", ""):
        with pytest.raises(
            UsageError, match=rf"{path}: there is no track '{wrong}': choose from 1 'B"
        ):
            first(wrong)
    for drums in ("3", "kit"):
        with pytest.raises(UsageError, match=rf"{path}: track '{drums}' is a drum track"):
            first(drums)


NAMED = (
    "MELODY|Melody 1|lead_vocals|LeadVocal|Vocal|Voice|Solo|Chant|Lead|Mélodie|Gesang|Singstimme|"
    "voix|canto|voz|Melodía|R.H.|Soprano|主旋律|旋律|メロディー|ﾒﾛﾃﾞｨ|ボーカル|Вокал"
)
NOT_NAMED = (
    "Lead sheet bass|Voice Oohs|Choir Aahs|Backing Vocals|BackVocals|Lead guitar comp|Lead guitar|"
    "Lead 8 (bass + lead)|Synth Voice|Harmony|2nd voice|Countermelody|副旋律|コーラス|Invoice|"
    "Leadership|The voice of one crying in the wilderness"
)


@pytest.mark.parametrize("title", NAMED.split("|"))
def test_a_name_says_which_track_is_the_melody(file: File, title: str) -> None:
    higher = tune(*[84, 86, 88, 86] * 8)
    path = file(midi([name("Flute"), *higher], [name(title), *tune(*[62, 64, 65, 64] * 8)]))
    score = read_score(path)
    chosen = choose_track(score, None)
    assert chosen.track is score.tracks[1] and chosen.reason == f"named {title!r}"


@pytest.mark.parametrize("title", NOT_NAMED.split("|"))
def test_a_name_that_only_looks_like_the_melody(file: File, title: str) -> None:
    path = file(midi([name(title), *tune(*[50] * 32)], [name("Flute"), *tune(*[72, 74] * 16)]))
    chosen = choose_track(read_score(path), None)
    assert chosen.track.name == "Flute" and "the most like a melody of 2" in chosen.reason


def test_a_name_of_all_tracks_or_of_one_that_hardly_plays_says_nothing(file: File) -> None:
    title = name("Unchained Melody")
    path = file(midi([title, *tune(*[50] * 32)], [title, *tune(*[72, 74] * 16)]))
    assert choose_track(read_score(path), None).track.pitch[0] == 72
    solo = midi([name("Solo"), *tune(80, 81)], [name("Flute"), *tune(*[72, 74] * 16)])
    assert choose_track(read_score(file(solo)), None).track.name == "Flute"


def test_words_say_which_track_is_sung(file: File) -> None:
    sung, other = [64, 62, 60, 62] * 8, tune(*[72, 74, 76, 79] * 12, steps=2)
    for kind in (0x01, 0x05):
        words = [meta(kind, *b"la ", after=QUARTER * bool(i)) for i in range(len(sung))]
        path = file(midi([meta(0x01, *b"@KMIDI"), *words], other, tune(*sung)))
        chosen = choose_track(read_score(path), None)
        assert chosen.track.pitch[0] == 64 and "words of the song" in chosen.reason


def test_a_melody_sounds_alone_and_moves_by_steps(file: File) -> None:
    chords = [
        event
        for root in (72, 74, 76, 74) * 8
        for event in (
            *(on(root + third) for third in (0, 4, 7)),
            off(root),
            *(off(root + third, after=0) for third in (4, 7)),
        )
    ]
    leaps = tune(*[72, 88, 76, 91] * 8)
    bass, bell = tune(*[36, 38, 40, 38] * 8), tune(84, 86)
    sings = tune(*[67, 69, 71, 69] * 8)
    path = file(midi(chords, leaps, bass, bell, sings))
    chosen = choose_track(read_score(path), None)
    assert chosen.track.pitch[0] == 67
    assert "of 5 tracks: 100% of its notes begin alone" in chosen.reason


def test_the_melody_of_real_songs(tmp_path: Path) -> None:
    root = Path(os.environ.get("AE_DATA", "/nowhere")) / "midi/pop909"
    if not root.is_dir():
        pytest.skip("needs songs with a named melody: set AE_DATA to the folder that holds midi/")
    right, unnamed, num = 0, 0, 0
    for path in sorted(root.rglob("*.mid"))[::12]:
        whole = read_score(path)
        blank = replace(whole, tracks=[replace(each, name="") for each in whole.tracks])
        (melody,) = (i for i, each in enumerate(whole.tracks) if each.name == "MELODY")
        right += choose_track(whole, None).track is whole.tracks[melody]
        unnamed += choose_track(blank, None).track is blank.tracks[melody]
        num += 1
    assert right == num and unnamed > 0.85 * num


# What does not fit the grid.


def told(path: Path) -> str:
    score = read_score(path)
    return describe_timing(timing_of(choose_track(score, None).track, tick=score.tick))


@pytest.mark.parametrize("division", [24, 96, 480])
def test_on_the_grid_and_off_by_a_tick_nothing_is_said(file: File, division: int) -> None:
    chance, sixteenth = np.random.default_rng(0), division // 4
    for most in (0, 1, division // 32):
        at = np.arange(1, 65) * 2 * sixteenth + chance.integers(-most, most + 1, 64)
        gaps = np.diff([1, *at]).tolist()
        events = [e for gap in gaps for e in (on(60, after=gap - 1), off(60, after=1))]
        events[0] = on(60, after=int(at[0]))
        assert told(file(midi(events, division=division))) == ""


def test_what_lies_off_the_grid_is_said_with_its_cure(file: File) -> None:
    straight = tune(*[60, 62, 64, 65] * 4)
    third = QUARTER // 3
    triplets = [e for _ in range(8) for e in (on(67), off(67, after=third))]
    assert "as triplets" in told(file([*straight, *triplets])) and "12/8" in told(file(triplets))
    short = [e for _ in range(8) for e in (on(67), off(67, after=SIXTEENTH // 2))]
    assert "as thirty-seconds" in told(file([*straight, *short]))
    late = told(file([meta(1, 65, after=SIXTEENTH // 3), *straight]))
    assert "all by 0.33 of one" in late and "move the notes onto the beat" in late
    gaps = np.random.default_rng(0).integers(60, 200, 60).tolist()
    played = told(file([e for gap in gaps for e in (on(60), off(60, after=gap))]))
    assert "quantise to sixteenths" in played and played.count(". ") == 0
    one_in_thirty = [*straight * 2, on(67, after=60), off(67, after=60), *straight[:4]]
    assert told(file(one_in_thirty)) == ""


@pytest.mark.parametrize("parts", [2, 3, -4])
def test_notes_that_are_late_alike_are_all_kept(file: File, parts: int) -> None:
    straight, late = tune(*range(60, 76), steps=1), SIXTEENTH // parts % SIXTEENTH
    (melody,) = melodies_of(read_score(file([meta(1, 65, after=late), *straight])))
    first = 1 if parts < 0 else 0  # early is late in the sixteenth before
    assert melody.pitches.tolist() == [*range(60, 76)]
    assert np.flatnonzero(melody.steps >= 2).tolist() == [*range(first, first + 16)]


def test_notes_that_the_grid_has_no_place_for_are_counted(file: File) -> None:
    path = file([e for i in range(16) for e in (on(60 + i), off(60 + i, after=SIXTEENTH // 2))])
    (melody,) = melodies_of(read_score(path))
    assert melody.num_notes == 9 and "7 are lost for others on theirs" in told(path)


# Objects.


def an_object(*rows: tuple[float, float, int]) -> pretty_midi.PrettyMIDI:
    """From seconds."""
    midi, instrument = pretty_midi.PrettyMIDI(), pretty_midi.Instrument(0)
    for start, end, pitch in rows:
        note = pretty_midi.Note(80, pitch, 0, 1)
        note.start, note.end = start, end
        instrument.notes.append(note)
    midi.instruments.append(instrument)
    return midi


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([(-0.5, 1, 60)], "has a note, meter, tempo or key at -0.5 seconds"),
        ([(float("nan"), 1, 60)], "at nan seconds"),
        ([(0, float("inf"), 60)], "at inf seconds"),
        ([(0, 1e300, 60)], "at 1e+300 seconds"),
        ([(1, 0.5, 60)], "has a note that ends before it begins"),
        ([(0, 1, 128)], "has a note of pitch 128, and MIDI knows 0 to 127"),
        ([(0, 1, float("nan"))], "has a note of pitch nan"),
        ([(0, 36_000, 60)], "lasts 72,000 quarter notes"),
        ([], "has no notes"),
    ],
)
def test_objects_of_which_no_melody_can_be_made(
    rows: list[tuple[float, float, int]], sentence: str
) -> None:
    with pytest.raises(RunError, match=r"^the PrettyMIDI object: ") as caught:
        melody_of(an_object((0, 0.5, 60), *rows) if rows else an_object())
    assert sentence in str(caught.value)


def test_objects_are_read_as_their_files_are(file: File, tmp_path: Path) -> None:
    midi = an_object(*((i / 2, i / 2 + 0.5, 60 + i) for i in range(12)))
    midi.instruments[0].notes.reverse()
    midi.instruments[0].notes[0].velocity = 300
    midi.time_signature_changes.append(pretty_midi.TimeSignature(3, 4, 0))
    midi.key_signature_changes.append(pretty_midi.KeySignature(7, 0))
    melody = melody_of(midi)
    assert (melody.meter, melody.key, melody.tempo) == ((3, 4), 7, 120)
    assert notes(melody) == [(4 * i, 4 * i + 4, 60 + i) for i in range(12)]
    assert melody.velocities.max() == 127
