"""What a file or a `pretty_midi.PrettyMIDI` holds, as arrays: tracks of notes, meters, tempi, keys.

Files are read by symusic, which is quick and believes every byte. So it is never given a file as
it is, but its tracks in a new frame; and where a glance finds what symusic would misread, they are
gone through event by event first. A hostile file is refused with a sentence before it costs time
or memory.
"""

from __future__ import annotations

import re
import stat
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

MAX_BYTES = 16 << 20  #: of a file in notation
MAX_MIDI_BYTES = 4 << 20
MAX_STEPS = 1 << 17  #: 8,192 bars of 4/4, four and a half hours at 120
MAX_NOTES = 1_000_000
MAX_TRACKS = 1024  #: and as many instruments
MAX_CHANGES = 1 << 16  #: of meter, tempo and key
MAX_SECONDS = 1e6  #: of an object, whose times are in seconds
MAX_TICKS = 2**31 - 1  #: symusic counts on from below 0
LARGE = 1 << 16  #: bytes from which a file is gone through event by event
LONG_NAME = 1024  #: bytes of a track's name; symusic copies it for each of its instruments
MIDI = (".mid", ".midi", ".kar")
NOTATION = (".abc", ".musicxml", ".mxl", ".xml", ".krn")  #: what music21 reads, an extra
TEMPI = 10.0, 1000.0  #: quarter notes per minute that are believed

TEXT, TRACK_NAME, END_OF_TRACK, METER = 0x01, 0x03, 0x2F, 0x58  #: kinds of meta events
META_SIZES = {0x51: 3, METER: 4, 0x59: 2}  #: bytes of those that are read as numbers
STRANGE_METER = re.compile(rb"\xff\x58\x04.[\x08-\xff]", re.DOTALL)
HIGH = b"0" * 128 + b"1" * 128  #: for each byte, whether it is at least 128


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
    return _parse(bytes_of(path, most=MAX_MIDI_BYTES), path)


def bytes_of(path: Path, *, most: int) -> bytes:
    """What is in a file, if it is one and not too large.

    Raises:
        Misuse: there is no such file.
        Failure: it cannot be read, or is larger than `most` bytes.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise Misuse(f"{path}: is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise Misuse(f"{path}: is a device or a pipe, not a file")
        if status.st_size > most:
            raise Failure(f"{path}: is larger than {most >> 20} MB, which no tune is")
        return path.read_bytes()
    except FileNotFoundError:
        raise Misuse(f"{path}: there is no such file") from None
    except OSError as error:
        raise Failure(f"{path}: cannot be read ({error.strerror})") from None


def _parse(data: bytes, path: Path) -> Score:
    import symusic

    form = _form(data, path)
    framed = form.framed()
    if _is_odd(framed):
        framed = form.repaired(path).framed()
    try:
        score = symusic.Score.from_midi(framed)
    except Exception as error:  # whatever the parser raises
        form.repaired(path)  # says it better, if it also finds something
        raise Failure(f"{path}: is cut short or broken ({_first_line(error)})") from error
    if len(score.tracks) > MAX_TRACKS:
        raise Failure(f"{path}: has more than {MAX_TRACKS:,} instruments")
    if sum(map(len, (score.time_signatures, score.tempos, score.key_signatures))) > MAX_CHANGES:
        raise Failure(f"{path}: has more than {MAX_CHANGES:,} changes of meter, tempo and key")
    scale = STEPS_PER_QUARTER / form.division

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
    if not tracks and (num := form.repaired(path).num_onsets):
        raise Failure(f"{path}: has no notes, none of the {num:,} that begin ever ends")
    meters = [Change(m.time * scale, (m.numerator, m.denominator)) for m in score.time_signatures]
    tempi = [Change(t.time * scale, float(t.qpm)) for t in score.tempos]
    keys = [Change(k.time * scale, _key_number(k.key, k.tonality)) for k in score.key_signatures]
    return _checked(tracks, meters, tempi, keys, where=f"{path}: ")


def knows_bars(path: Path) -> bool:
    """Whether a file says where its bar lines are, so that no pickup need be found."""
    return path.suffix.lower() in NOTATION


def score_of(midi: PrettyMIDI) -> Score:
    """The same from an object of pretty_midi's.

    Raises:
        Failure: it holds what no melody can be made of.
    """
    where, scale = "the PrettyMIDI object: ", STEPS_PER_QUARTER / midi.resolution

    def steps(seconds: float) -> float:
        if not 0 <= seconds <= MAX_SECONDS:
            raise Failure(f"{where}has a note, meter, tempo or key at {seconds:.6g} seconds")
        return scale * midi.time_to_tick(seconds)

    tracks = []
    for instrument in midi.instruments:
        notes = sorted(instrument.notes, key=lambda note: (note.start, note.pitch))
        strange = [note.pitch for note in notes if not 0 <= note.pitch <= 127]
        if strange:
            raise Failure(f"{where}has a note of pitch {strange[0]}, and MIDI knows 0 to 127")
        if notes:
            columns = (
                np.array([steps(note.start) for note in notes]),
                np.array([steps(note.end) for note in notes]),
                np.array([note.pitch for note in notes]),
                np.array([min(127, max(1, note.velocity)) for note in notes]),
            )
            program = int(instrument.program) & 127
            tracks.append(Track(_printable(instrument.name), program, instrument.is_drum, *columns))
    meters = [
        Change(steps(m.time), (m.numerator, m.denominator)) for m in midi.time_signature_changes
    ]
    tempi = [
        Change(steps(at), float(value)) for at, value in zip(*midi.get_tempo_changes(), strict=True)
    ]
    keys = [Change(steps(k.time), k.key_number) for k in midi.key_signature_changes]
    return _checked(tracks, meters, tempi, keys, where=where)


class _Form(NamedTuple):
    """What a MIDI file's frame holds: ticks per quarter note, and tracks, each a row of events."""

    division: int
    tracks: list[bytes]
    num_onsets: int = 0  #: where the events have been gone through

    def framed(self) -> bytes:
        """A MIDI file. symusic reads a few bytes beyond a track's end, so there are some."""
        head = struct.pack(">4sIHHH", b"MThd", 6, 1, len(self.tracks), self.division)
        chunks = (struct.pack(">4sI", b"MTrk", len(t)) + t for t in self.tracks)
        return head + b"".join(chunks) + bytes(16)

    def repaired(self, path: Path) -> _Form:
        """The same, with what symusic misreads made harmless.

        Raises:
            Failure: there is something in it that is no event; or there is too much of it.
        """
        rows: list[_Events] = []
        for number, track in enumerate(self.tracks, start=1):
            where = f"{path}: is broken, in track {number} "
            try:
                rows.append(_gone_through(track))
            except IndexError:
                raise Failure(f"{where}an event reaches beyond the track's end") from None
            except ValueError as error:
                raise Failure(f"{where}{error}") from None
        longest = max(row.ticks for row in rows)
        if longest > MAX_TICKS:
            raise Failure(f"{path}: lasts {longest / self.division:,.0f} quarter notes")
        if sum(row.num_instruments for row in rows) > MAX_TRACKS:
            raise Failure(f"{path}: has more than {MAX_TRACKS:,} instruments")
        num_onsets = sum(row.num_onsets for row in rows)
        return _Form(self.division, [row.fixed for row in rows], num_onsets)


class _Events(NamedTuple):
    """The events of one track, and what they come to."""

    fixed: bytes
    ticks: int
    num_instruments: int
    num_onsets: int


def _gone_through(track: bytes) -> _Events:
    """The events of a track, made harmless one by one.

    What symusic would misread becomes a text, which it passes over: meta events of a wrong size, of
    which it takes the bytes after them; a meter whose denominator overflows; a name so long that a
    copy for each instrument would fill the memory. A packet of system-exclusive bytes becomes a
    message of them, since symusic takes what is in it for events.

    Raises:
        IndexError: an event reaches beyond the end.
        ValueError: there is no event where one must be; the sentence goes on from "in track 1".
    """
    fixed, end = bytearray(track), len(track)
    instruments: set[tuple[int, int]] = set()
    programs = [0] * 16
    at = ticks = status = num_onsets = 0
    while at < end:
        byte = track[at]
        if byte < 128:
            ticks, at = ticks + byte, at + 1
        else:
            delta, at = _quantity(track, at)
            ticks += delta
        byte = track[at]
        if byte == 0xFF:
            kind = track[at + 1]
            size, first = _quantity(track, at + 2)
            if _is_strange(kind, size, track[at + 2 : first + 2]):
                fixed[at + 1] = TEXT
            at = first + size
            if kind == END_OF_TRACK:
                break
        elif byte in (0xF0, 0xF7):
            fixed[at], status = 0xF0, 0
            size, first = _quantity(track, at + 1)
            at = first + size
        elif byte > 0xF0:
            raise ValueError(f"there is an event of kind 0x{byte:x}, which no file may hold")
        else:
            if byte >= 128:
                status, at = byte, at + 1
            elif not status:
                raise ValueError("there is data where an event must begin")
            kind, channel, value = status >> 4, status & 15, track[at]
            if kind in (0xC, 0xD):
                other, at = 0, at + 1
            else:
                other, at = track[at + 1], at + 2
            if value > 127 or other > 127:
                raise ValueError(
                    f"there is a value of {max(value, other)}, and MIDI knows 0 to 127"
                )
            if kind == 0x9 and other:
                instruments.add((channel, programs[channel]))
                num_onsets += 1
            elif kind == 0xC:
                programs[channel] = value
    if at > end:
        raise IndexError
    return _Events(bytes(fixed), ticks, len(instruments), num_onsets)


def _quantity(track: bytes, at: int) -> tuple[int, int]:
    """A number of one to four bytes, the last of which is below 128, and where it ends."""
    value = 0
    for last in range(at, at + 4):
        byte = track[last]
        value = value << 7 | byte & 127
        if byte < 128:
            break
    return value, last + 1


def _is_strange(kind: int, size: int, data: bytes) -> bool:
    """Whether a meta event is misread; its data begin with its size."""
    if kind in META_SIZES:
        return data[0] != META_SIZES[kind] or (kind == METER and data[2] > 7)
    return kind == TRACK_NAME and size > LONG_NAME


def _form(data: bytes, path: Path) -> _Form:
    """Looks at the header and the frames of the tracks of a MIDI file.

    Raises:
        Failure: it is no MIDI file, or of a kind that holds no bars.
    """
    if not data:
        raise Failure(f"{path}: is empty")
    if data[:4] == b"RIFF" and (at := data.find(b"MThd", 0, 4096)) >= 4:
        data = data[at : at + int.from_bytes(data[at - 4 : at], "little")]
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
    tracks: list[bytes] = []
    at = 8 + length
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "big")
        at += 8
        if at + size > len(data):
            if name != b"MTrk" or len(tracks) >= num_tracks:
                break
            missing = at + size - len(data)
            raise Failure(f"{path}: is cut short, track {len(tracks) + 1} misses {missing:,} bytes")
        if name == b"MTrk":
            tracks.append(data[at : at + size])
        at += size
        if len(tracks) > MAX_TRACKS:
            raise Failure(f"{path}: has more than {MAX_TRACKS:,} tracks")
    if len(tracks) < num_tracks:
        raise Failure(
            f"{path}: is cut short or broken, it has {len(tracks)} of {num_tracks} tracks"
        )
    if not tracks:
        raise Failure(f"{path}: has no tracks")
    return _Form(division, tracks)


def _is_odd(data: bytes) -> bool:
    """Whether there may be something in a MIDI file that symusic misreads.

    That is: times that may overflow, for which there must be a number of four bytes, 512 of three
    or a large file; system-exclusive bytes; meta events of a wrong size, which may also be bytes
    that only look like one; a denominator above 128.
    """
    if len(data) > LARGE or b"\xf0" in data or b"\xf7" in data:
        return True
    high = data.translate(HIGH)
    if b"111" in high or high.count(b"11") >= 512:
        return True
    for kind, size in META_SIZES.items():
        name = bytes([0xFF, kind])
        if data.count(name) != data.count(name + bytes([size])):
            return True
    return STRANGE_METER.search(data) is not None


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
    good = [m for m in meters if _is_meter(*m.value) and m.at <= longest]
    heard = [t for t in tempi if t.at <= longest]
    believed = [t for t in heard if TEMPI[0] <= t.value <= TEMPI[1]]
    if heard and not believed:
        raise Failure(f"{where}has a tempo of {heard[0].value:.3g} quarter notes per minute")
    names = [track.name for track in tracks if track.name]
    return Score(
        tracks,
        _from_zero([Change(m.at, Meter(*m.value)) for m in good], Meter(4, 4)),
        _from_zero(believed, 120.0),
        sorted((k for k in keys if 0 <= k.value < 24), key=lambda change: change.at),
        names[0] if names else "",
    )


def _from_zero(changes: list[Change], default: Any) -> list[Change]:
    """Sorted, the later of two at once, beginning at 0."""
    latest = {change.at: change for change in sorted(changes, key=lambda change: change.at)}
    rows = list(latest.values())
    if not rows or rows[0].at > 0:
        rows.insert(0, Change(0.0, default))
    return rows


def _is_meter(numerator: int, denominator: int) -> bool:
    return 0 < numerator < 256 and denominator in (1, 2, 4, 8, 16, 32, 64, 128)


def _key_number(sharps: int, tonality: int) -> int:
    """Sharps (or, negative, flats) and mode to pretty_midi's number of a key; -1: none."""
    if not -7 <= sharps <= 7 or tonality not in (0, 1):
        return -1
    major = sharps * 7 % 12
    return (major + 9) % 12 + 12 if tonality else major


def _printable(name: str) -> str:
    if not name.isprintable():
        name = "".join(letter for letter in name[:LONG_NAME] if letter.isprintable())
    return name.strip()[:60]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:100] or type(error).__name__
