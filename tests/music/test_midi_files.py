"""MIDI files of every kind: each gives the right notes or one clear sentence, and at once."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ae_music.grid import COMMON_TIME, Meter
from ae_music.midi import score
from ae_music.modality import Melodies
from midi_events import (
    FOREVER,
    QUARTER,
    SCALE,
    Event,
    File,
    an_instrument,
    meta,
    meter,
    midi,
    name,
    notes,
    off,
    on,
    read,
    refused,
    tempo,
    track,
    tune,
    write_midi,
)

from ae_toolkit.data.folder import read_folder


@pytest.fixture
def file(tmp_path: Path) -> File:
    """Writes bytes, or events of one track, to a MIDI file."""
    return partial(write_midi, tmp_path)


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
