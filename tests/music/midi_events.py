"""MIDI files event by event, as tests write them, and what is read of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from ae_music.grid import Melody, read_steps
from ae_music.midi.extract import melodies_of
from ae_music.midi.score import read_score
from ae_music.modality import Melodies

from ae_toolkit import RunError, UsageError

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


def write_midi(folder: Path, data: bytes | Sequence[Event], stem: str = "tune") -> Path:
    """Writes bytes, or events of one track, to a MIDI file."""
    path = folder / f"{stem}.mid"
    path.write_bytes(data if isinstance(data, bytes) else midi(data))
    return path


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


SCALE = tune(60, 62, 64, 65)
