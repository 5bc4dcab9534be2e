"""What a file or a `pretty_midi.PrettyMIDI` holds, as arrays: tracks of notes, meters, tempi, keys.

Files are read by symusic, which is quick, after a look at their outermost form; a hostile one is
refused with a sentence before it can cost time or memory.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ae_music.grid import STEPS_PER_QUARTER, Meter, Notes
from ae_toolkit import Failure, Misuse

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI

MAX_BYTES = 16 << 20
MAX_STEPS = 1 << 17  #: 8,192 bars of 4/4, four and a half hours at 120
MAX_NOTES = 1_000_000
MIDI = (".mid", ".midi", ".kar")
NOTATION = (".abc", ".musicxml", ".mxl", ".xml", ".krn")  #: what music21 reads, an extra
TEMPI = 10.0, 1000.0  #: quarter notes per minute that are believed


@dataclass(frozen=True)
class Track:
    """The notes of one instrument, in steps as real numbers, sorted by onset."""

    name: str
    program: int
    is_drum: bool
    start: np.ndarray
    end: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def on_grid(self) -> Notes:
        """The notes on the nearest sixteenths, each at least one long."""
        start = np.rint(self.start).astype(np.int64)
        end = np.maximum(np.rint(self.end).astype(np.int64), start + 1)
        return Notes(start, end, self.pitch.astype(np.int64), self.velocity.astype(np.int64))


class Change(NamedTuple):
    """Something that holds from a moment on, in steps."""

    at: float
    value: Any


@dataclass(frozen=True)
class Score:
    """A piece.

    Attributes:
        tracks: in the order of the file, without empty ones.
        meters: the first at 0.
        tempi: quarter notes per minute, the first at 0.
        keys: as pretty_midi numbers them.
        title: what the file calls itself, if anything.
    """

    tracks: Sequence[Track]
    meters: Sequence[Change]
    tempi: Sequence[Change]
    keys: Sequence[Change]
    title: str = ""

    @property
    def length(self) -> float:
        """Steps up to the end of the last note."""
        return max((float(track.end.max()) for track in self.tracks), default=0.0)


def read_score(path: Path) -> Score:
    """Reads a MIDI file, or by its ending what music21 reads.

    Raises:
        Misuse: there is no such file.
        Failure: it cannot be understood; the sentence says why.
    """
    if path.suffix.lower() in NOTATION:
        from ae_music.notation import to_midi

        return _parse(to_midi(path), path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Failure(f"{path}: is larger than {MAX_BYTES >> 20} MB, which no tune is")
        return _parse(path.read_bytes(), path)
    except FileNotFoundError:
        raise Misuse(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise Misuse(f"{path}: is a folder, not a file") from None


def _parse(data: bytes, path: Path) -> Score:
    import symusic

    quarter = check_form(data, path)
    try:
        score = symusic.Score.from_midi(data)
    except Exception as error:  # whatever the parser raises
        raise Failure(f"{path}: is cut short or broken ({_first_line(error)})") from error
    scale = STEPS_PER_QUARTER / quarter

    tracks = []
    for track in score.tracks:
        notes = track.notes.numpy()
        start = notes["time"].astype(np.float64) * scale
        end = start + notes["duration"].astype(np.float64) * scale
        order = np.argsort(start, kind="stable")
        if len(order):
            columns = (start, end, notes["pitch"], notes["velocity"])
            tracks.append(
                Track(
                    _printable(track.name),
                    int(track.program) & 127,
                    bool(track.is_drum),
                    *(column[order] for column in columns),
                )
            )
    meters = [Change(m.time * scale, (m.numerator, m.denominator)) for m in score.time_signatures]
    tempi = [Change(t.time * scale, float(t.qpm)) for t in score.tempos]
    keys = [Change(k.time * scale, _key_number(k.key, k.tonality)) for k in score.key_signatures]
    return _checked(tracks, meters, tempi, keys, where=f"{path}: ")


def score_of(midi: PrettyMIDI) -> Score:
    """The same from an object of pretty_midi's.

    Raises:
        Failure: it holds what no melody can be made of.
    """
    scale = STEPS_PER_QUARTER / midi.resolution
    tracks = []
    for instrument in midi.instruments:
        notes = sorted(instrument.notes, key=lambda note: (note.start, note.pitch))
        if not notes:
            continue
        if min(note.start for note in notes) < 0:
            raise Failure("the PrettyMIDI object: has a note that begins before time 0")
        columns = [
            np.array([scale * midi.time_to_tick(note.start) for note in notes]),
            np.array([scale * midi.time_to_tick(note.end) for note in notes]),
            np.array([note.pitch for note in notes]),
            np.array([note.velocity for note in notes]),
        ]
        tracks.append(
            Track(_printable(instrument.name), instrument.program, instrument.is_drum, *columns)
        )
    meters = [
        Change(scale * midi.time_to_tick(m.time), (m.numerator, m.denominator))
        for m in midi.time_signature_changes
    ]
    times, values = midi.get_tempo_changes()
    tempi = [
        Change(scale * midi.time_to_tick(t), float(v)) for t, v in zip(times, values, strict=True)
    ]
    keys = [
        Change(scale * midi.time_to_tick(k.time), k.key_number) for k in midi.key_signature_changes
    ]
    return _checked(tracks, meters, tempi, keys, where="the PrettyMIDI object: ")


def check_form(data: bytes, path: Path) -> int:
    """Looks at the header and the frames of the tracks of a MIDI file.

    Returns:
        Ticks per quarter note.

    Raises:
        Failure: it is no MIDI file, or of a kind that holds no bars.
    """
    if not data:
        raise Failure(f"{path}: is empty")
    if data[:4] == b"RIFF" and b"MThd" in data[:32]:
        data = data[data.index(b"MThd") :]
    if data[:4] != b"MThd":
        raise Failure(f"{path}: is not a MIDI file, it does not begin with 'MThd'")
    if len(data) < 14:
        raise Failure(f"{path}: is cut short within its header")
    length, kind, num_tracks, division = struct.unpack(">IHHH", data[4:14])
    if kind == 2:
        raise Failure(
            f"{path}: is of MIDI type 2, independent patterns, which have no one timeline"
        )
    if kind > 2 or length < 6:
        raise Failure(f"{path}: has a broken header (type {kind}, {length} bytes)")
    if division & 0x8000:
        raise Failure(f"{path}: is timed in SMPTE frames instead of beats, so it has no bars")
    if division == 0:
        raise Failure(f"{path}: has 0 ticks per quarter note")
    at, found = 8 + length, 0
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "big")
        if at + 8 + size > len(data):
            raise Failure(
                f"{path}: is cut short, track {found + 1} misses {at + 8 + size - len(data)} bytes"
            )
        found += name == b"MTrk"
        at += 8 + size
    if not found:
        raise Failure(f"{path}: has no tracks")
    return division


def _checked(
    tracks: list[Track],
    meters: list[Change],
    tempi: list[Change],
    keys: list[Change],
    *,
    where: str,
) -> Score:
    """The score, if its times can be those of a piece."""
    if not tracks:
        raise Failure(f"{where}has no notes")
    if sum(map(len, tracks)) > MAX_NOTES:
        raise Failure(f"{where}has more than {MAX_NOTES:,} notes")
    if min(float(track.start.min()) for track in tracks) < 0:
        raise Failure(f"{where}has a note that begins before time 0")
    longest = max(float(track.end.max()) for track in tracks)
    if longest > MAX_STEPS:
        raise Failure(
            f"{where}lasts {longest / 4:,.0f} quarter notes, and more than {MAX_STEPS // 4:,} are "
            f"refused"
        )
    if any(float((track.end - track.start).min()) < 0 for track in tracks):
        raise Failure(f"{where}has a note that ends before it begins")
    good = [m for m in meters if m.value[0] > 0 and m.value[1] > 0 and m.at <= longest]
    believed = [t for t in tempi if TEMPI[0] <= t.value <= TEMPI[1] and t.at <= longest]
    if tempi and not believed:
        raise Failure(f"{where}has a tempo of {tempi[0].value:.3g} quarter notes per minute")
    names = [track.name for track in tracks if track.name]
    return Score(
        tracks,
        _from_zero([Change(m.at, Meter(*m.value)) for m in good], Meter(4, 4)),
        _from_zero(believed, 120.0),
        [k for k in keys if 0 <= k.value < 24],
        names[0] if names else "",
    )


def _from_zero(changes: list[Change], default: Any) -> list[Change]:
    """Sorted, the later of two at once, beginning at 0."""
    latest = {change.at: change for change in sorted(changes, key=lambda change: change.at)}
    rows = list(latest.values())
    if not rows or rows[0].at > 0:
        rows.insert(0, Change(0.0, default))
    return rows


def _key_number(sharps: int, tonality: int) -> int:
    """Sharps (or, negative, flats) and mode to pretty_midi's number of a key; -1: none."""
    if not -7 <= sharps <= 7:
        return -1
    major = sharps * 7 % 12
    return (major + 9) % 12 + 12 if tonality else major


def _printable(name: str) -> str:
    return "".join(letter for letter in name if letter.isprintable()).strip()[:60]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:100] or type(error).__name__
