"""Reading melodies: every file gives the right melody or one clear sentence, and at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
from ae_music.grid import COMMON_TIME, KNOWN_METERS, Melody, Meter, Notes, read_steps, write_steps
from ae_music.midi import score
from ae_music.midi.choose import choose_track
from ae_music.midi.extract import melodies_of
from ae_music.midi.score import read_score
from ae_music.midi.timing import describe_timing, timing_of
from ae_music.midi.write import to_midi
from ae_music.modality import Melodies, melody_of, octave_shift

from ae_toolkit import RunError, UsageError
from ae_toolkit.data.folder import read_folder

QUARTER = 480
SIXTEENTH = QUARTER // 4
FOREVER = 0x0FFFFFFF  #: the longest time between two events

Event = tuple[int, bytes]  #: ticks since the one before, and its bytes
File = Callable[..., Path]


def size(value: int) -> bytes:
    """A number of variable length."""
    rest = value >> 7
    return (bytes(b | 128 for b in size(rest)) if rest else b"") + bytes([value & 127])


def on(pitch: int, velocity: int = 80, *, after: int = 0, channel: int = 0) -> Event:
    return after, bytes([0x90 | channel, pitch, velocity])


def off(pitch: int, *, after: int = QUARTER, channel: int = 0) -> Event:
    return after, bytes([0x80 | channel, pitch, 0])


def meta(kind: int, *values: int, after: int = 0) -> Event:
    return after, bytes([0xFF, kind]) + size(len(values)) + bytes(values)


def meter(numerator: int, power: int, *, after: int = 0) -> Event:
    return meta(0x58, numerator, power, 24, 8, after=after)


def tempo(quarters_per_minute: float, *, after: int = 0) -> Event:
    return meta(0x51, *round(60e6 / quarters_per_minute).to_bytes(3, "big"), after=after)


def name(text: str) -> Event:
    return meta(0x03, *text.encode())


def tune(*pitches: int, steps: int = 4, channel: int = 0, velocity: int = 80) -> list[Event]:
    """Notes of one length, one after the other; 0 is a rest."""
    events, rest = [], 0
    for pitch in pitches:
        if pitch:
            length = steps * SIXTEENTH
            events.append(on(pitch, velocity, after=rest, channel=channel))
            events.append(off(pitch, after=length, channel=channel))
        rest = 0 if pitch else rest + steps * SIXTEENTH
    return events


def an_instrument(channel: int, program: int) -> list[Event]:
    return [(0, bytes([0xC0 | channel, program])), *tune(60, steps=1, channel=channel)]


def track(events: Sequence[Event], *, end: bool = True) -> bytes:
    body = b"".join(size(after) + data for after, data in [*events, *[meta(0x2F)] * end])
    return b"MTrk" + len(body).to_bytes(4, "big") + body


def midi(*tracks: bytes | Sequence[Event], kind: int = 1, division: int = QUARTER) -> bytes:
    bodies = [each if isinstance(each, bytes) else track(each) for each in tracks]
    head = b"".join(value.to_bytes(2, "big") for value in (kind, len(bodies), division))
    return b"MThd\0\0\0\6" + head + b"".join(bodies)


@pytest.fixture
def file(tmp_path: Path) -> File:
    """Writes bytes, or events of one track, to a MIDI file."""

    def write(data: bytes | Sequence[Event], stem: str = "tune") -> Path:
        path = tmp_path / f"{stem}.mid"
        path.write_bytes(data if isinstance(data, bytes) else midi(data))
        return path

    return write


def read(path: Path, *, knows_bars: bool = False, **how: object) -> list[Melody]:
    score = replace(read_score(path), knows_bars=knows_bars)
    return melodies_of(score, where=f"{path}: ", **how)


def notes(melody: Melody) -> list[tuple[int, int, int]]:
    """Onset, end and pitch."""
    start, end, pitch, _ = read_steps(melody.steps)
    return list(zip(start.tolist(), end.tolist(), pitch.tolist(), strict=True))


def refused(path: Path) -> str:
    """The sentence with which a file is refused, less its name."""
    with pytest.raises((RunError, UsageError)) as caught:
        list(Melodies().read(path))
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: ") and "\n" not in sentence and len(sentence) < 300
    return sentence.removeprefix(f"{path}: ")


# What is refused.

SCALE = tune(60, 62, 64, 65)


REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"X: 1\nT: Drowsy Maggie\nK: D\n", "is not a MIDI file"),
    "other RIFF": (b"RIFF\x24\0\0\0WAVEfmt ", "is not a MIDI file"),
    "cut in the header": (midi(SCALE)[:11], "is cut short within its header"),
    "cut after the header": (midi(SCALE)[:14], "it has 0 of 1 tracks"),
    "cut in a track's header": (midi(SCALE)[:20], "it has 0 of 1 tracks"),
    "cut in an event": (midi(SCALE)[:31], "is cut short, track 1 misses"),
    "cut between tracks": (midi(SCALE, SCALE)[: len(midi(SCALE))], "it has 1 of 2 tracks"),
    "no track": (midi(), "has no tracks"),
    "type 2": (midi(SCALE, kind=2), "is of MIDI type 2"),
    "type 3": (midi(SCALE, kind=3), "has a broken header (type 3, 6 bytes)"),
    "SMPTE": (midi(SCALE, division=0xE728), "is timed in SMPTE frames"),
    "division 0": (midi(SCALE, division=0), "has 0 ticks per quarter note"),
    "no events": (midi([]), "has no notes"),
    "drums only": (midi(tune(36, 38, channel=9)), "there are drums only"),
    "never ends": (midi([on(60), on(62), on(64)]), "none of the 3 that begin ever ends"),
    "tempo 0": (midi([meta(0x51, 0, 0, 0), *SCALE]), "has a tempo of inf quarter notes"),
    "tempo 6": (midi([tempo(6), *SCALE]), "has a tempo of 6 quarter notes per minute"),
    "ten hours": (
        midi([on(60), off(60, after=72_000 * QUARTER)]),
        "lasts 72,000 quarter notes, and more than 32,768 are refused",
    ),
    "an age": (midi([on(60), off(60, after=FOREVER)] * 40), "lasts 22,369,621 quarter notes"),
    "times that overflow": (
        midi([*SCALE, *[meta(1, after=FOREVER)] * 16, meta(1, after=16), *SCALE]),
        "lasts 8,947,857 quarter notes",
    ),
    "pitch 188": (midi([on(188), off(188)]), "in track 1 there is a value of 188"),
    "no status": (midi(SCALE, [(0, b"\x40\x40")]), "in track 2 there is data where an event"),
    "no event": (midi([(0, b"\xf4")]), "there is an event of kind 0xf4"),
    "unfinished": (midi(track([on(60), (0, b"\x80")], end=False)), "reaches beyond the track"),
    "a long text": (midi([(0, b"\xff\x01\x7f"), *SCALE]), "reaches beyond the track's end"),
    "an end that goes on": (midi([*SCALE, (0, b"\xff\x2f\x40")]), "reaches beyond the track's end"),
    "a long packet": (midi([(0, b"\xf0\xff\x7f"), *SCALE]), "reaches beyond the track's end"),
    "2,000 tracks": (midi(*[SCALE] * 2000), "has more than 1,024 tracks"),
    "2,000 instruments": (
        midi([e for i in range(2000) for e in an_instrument(i % 16, i // 16)]),
        "has more than 1,024 instruments",
    ),
}


@pytest.mark.parametrize(("data", "sentence"), REFUSED.values(), ids=REFUSED)
def test_one_sentence_says_what_is_wrong(file: File, data: bytes, sentence: str) -> None:
    assert sentence in refused(file(data))


def test_cut_anywhere_it_is_refused(file: File) -> None:
    whole = midi([name("A tune"), meter(3, 2), tempo(90)], SCALE)
    for length in range(len(whole)):
        assert refused(file(whole[:length]))


def test_what_is_no_file(file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(tmp_path / "nowhere.mid") == "there is no such file"
    (tmp_path / "folder.mid").mkdir()
    assert refused(tmp_path / "folder.mid") == "is a folder, not a file"
    assert refused(file(SCALE) / "inside.mid") == "there is no such file"
    if hasattr(os, "mkfifo"):
        for kind in (".mid", ".abc"):
            os.mkfifo(tmp_path / f"pipe{kind}")
            assert refused(tmp_path / f"pipe{kind}") == "is a pipe, not a file"
    if Path("/dev/zero").exists():
        (tmp_path / "zero.mid").symlink_to("/dev/zero")
        assert refused(tmp_path / "zero.mid") == "is a device, not a file"
    monkeypatch.setattr(score, "MAX_MIDI_BYTES", 1 << 20)
    path = file(SCALE)
    with path.open("ab") as grown:
        grown.truncate((1 << 20) + 1)
    assert refused(path) == "holds 1 MB, and more than 1.05 MB is refused"


MUCH = {
    "tempi": [e for i in range(10_000) for e in (tempo(100 + i % 50), *tune(60, steps=2))],
    "meters": [e for i in range(1_500) for e in (meter(2 + i % 2, 3), *tune(60, steps=9))],
    "a name for each instrument": [
        name("a" * 40_000),
        *(e for i in range(900) for e in an_instrument(i % 8, i // 8)),
    ],
}


@pytest.mark.parametrize("events", MUCH.values(), ids=MUCH)
def test_much_of_anything_is_quick(file: File, events: list[Event]) -> None:
    path, began = file(events), time.process_time()
    assert read(path)
    assert time.process_time() - began < 3


def test_a_folder_of_broken_files_is_quick_and_told_in_a_few_lines(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chance, whole = np.random.default_rng(0), midi([meter(4, 2), *SCALE * 8])
    for i in range(300):
        file(whole[: chance.integers(len(whole))], f"tunes-broken-{i}")
    for i in range(3):
        file([*SCALE, *tune(*range(60 + i, 72 + i))], f"tunes-good-{i}")
    began = time.process_time()
    corpus = read_folder([tmp_path], Melodies())
    assert time.process_time() - began < 5
    assert len(corpus.skipped) == 300 and len(set(corpus.examples.groups)) == 3
    said = capfd.readouterr().err.splitlines()
    assert len(said) <= 12 and "skipped 300 of 303 files" in said[0] and "290 more" in said[-1]
    again = read_folder([tmp_path], Melodies())
    assert again.skipped == corpus.skipped and len(again.examples) == len(corpus.examples)


# What is read.


RIGHT = {
    "as it is": (midi(SCALE), [(0, 4, 60), (4, 8, 62), (8, 12, 64), (12, 16, 65)]),
    "type 0": (midi(SCALE[:2], kind=0), [(0, 4, 60)]),
    "no end of track": (midi(track(SCALE[:2], end=False)), [(0, 4, 60)]),
    "events after its end": (midi([*SCALE[:2], meta(0x2F), *SCALE]), [(0, 4, 60)]),
    "a longer header": (
        midi(SCALE[:2]).replace(b"\0\0\0\6", b"\0\0\0\x08").replace(b"\1\xe0", b"\1\xe0\0\0"),
        [(0, 4, 60)],
    ),
    "RIFF": (
        b"RIFF\xff\0\0\0RMIDdata"
        + len(midi(SCALE[:2])).to_bytes(4, "little")
        + midi(SCALE[:2])
        + b"LIST\xff\0\0\0INFO",
        [(0, 4, 60)],
    ),
    "chunks of other kinds": (
        midi(b"XFIH\0\0\0\3abc" + track(SCALE[:2])) + b"what follows a file",
        [(0, 4, 60)],
    ),
    "more tracks than it says": (midi([name("empty")]) + track(SCALE[:2]), [(0, 4, 60)]),
    "velocity 0 ends": (midi([on(60), on(60, 0, after=QUARTER)]), [(0, 4, 60)]),
    "running status": (
        midi([on(60), (QUARTER, b"\x3c\0"), (0, b"\x3e\x50"), (QUARTER, b"\x3e\0")]),
        [(0, 4, 60), (4, 8, 62)],
    ),
    "running status over a text": (
        midi([on(60), meta(1, 65, after=QUARTER), (0, b"\x3c\0")]),
        [(0, 4, 60)],
    ),
    "an end without a beginning": (midi([off(64, after=0), *SCALE[:2]]), [(0, 4, 60)]),
    "zero long": (
        midi([on(60), off(60, after=0), on(62, after=960), off(62)]),
        [(0, 1, 60), (8, 12, 62)],
    ),
    "one never ends": (midi([*SCALE[:2], on(62), *tune(0, 64)]), [(0, 4, 60), (8, 12, 64)]),
    "a pitch struck again": (
        midi([on(60), on(60, after=QUARTER), off(60), off(60)]),
        [(0, 4, 60), (4, 12, 60)],
    ),
    "shorter than the grid, at the end": (
        midi([on(60), off(60), on(62, after=330), off(62, after=15)]),
        [(0, 4, 60), (7, 8, 62)],
    ),
    "a packet that looks like events": (
        midi([(0, b"\xf7\x04\x90\x40\x40\x05"), *SCALE[:2]]),
        [(0, 4, 60)],
    ),
    "system-exclusive bytes": (midi([(0, b"\xf0\3\1\2\xf7"), *SCALE[:2]]), [(0, 4, 60)]),
    "128 tracks": (
        midi(*(tune(*[60 + i % 7] * 4) for i in range(127)), tune(*[80] * 4)),
        [(0, 4, 80), (4, 8, 80), (8, 12, 80), (12, 16, 80)],
    ),
}


@pytest.mark.parametrize(("data", "expected"), RIGHT.values(), ids=RIGHT)
def test_the_right_notes(file: File, data: bytes, expected: list[tuple[int, int, int]]) -> None:
    (melody,) = read(file(data))
    assert notes(melody) == expected
    assert len(melody) == 16 and melody.start == 0


@pytest.mark.parametrize(
    ("event", "field", "value"),
    [
        (meter(5, 2), "meter", Meter(5, 4)),
        (meter(7, 3), "meter", Meter(7, 8)),
        (meter(12, 3), "meter", Meter(12, 8)),
        (meter(3, 5), "meter", COMMON_TIME),  # finer than sixteenths
        (meter(0, 2), "meter", COMMON_TIME),
        (meter(4, 10), "meter", COMMON_TIME),
        (meter(4, 34), "meter", COMMON_TIME),
        (meta(0x58, 3), "meter", COMMON_TIME),
        (tempo(90), "tempo", pytest.approx(90, rel=1e-5)),
        (tempo(2000), "tempo", 120.0),  # not believed beside a good one
        (meta(0x51, 0, 0, 0), "tempo", 120.0),
        (meta(0x51, 7), "tempo", 120.0),
        (meta(0x51), "tempo", 120.0),
        (meta(0x59, 2, 0), "key", 2),
        (meta(0x59, 0xFE, 0), "key", 10),
        (meta(0x59, 0xFD, 1), "key", 12),
        (meta(0x59, 96, 0), "key", None),
        (meta(0x59, 1, 5), "key", None),
        (meta(0x59, 0x80, 0), "key", None),
        (meta(0x59), "key", None),
        ((0, b"\xc0\x49"), "program", 0x49),
        (name("Die schöne\nMüllerin"), "name", "Die schöneMüllerin"),
        (meta(0x03, *"Mélodie".encode("latin-1")), "name", "Mélodie"),
        (meta(0x03, *"メロディ".encode("cp932")), "name", "メロディ"),
        (meta(0x03, *"主旋律".encode("gb18030")), "name", "主旋律"),
        (meta(0x03, *"Вокал".encode("cp1251")), "name", "Вокал"),
    ],
)
def test_what_a_file_says_of_itself(file: File, event: Event, field: str, value: object) -> None:
    (melody,) = read(file([tempo(120), event, *SCALE]))
    assert getattr(melody, field) == value
    assert melody.num_notes == len(SCALE) // 2
    assert len(melody) == melody.meter.steps * melody.num_bars


def test_odd_events_at_a_tracks_very_end(file: File) -> None:
    for event in (meta(0x51), meta(0x58), meta(0x59), meta(0x58, 1), (0, b"\xff\x51\x80\x00")):
        (melody,) = read(file(midi(track([*SCALE, event], end=False))))
        assert (melody.meter, melody.tempo, melody.key) == (COMMON_TIME, 120.0, None)
    for rest in (b"\0", b"\0\xff", b"\0\xff\x51", b"\x81\x82", b"\0\x90", b"\0\xf7", b"\0\xf0\x85"):
        assert "is broken, in track 1" in refused(file(midi(track([(0, rest)], end=False))))


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
