"""What a file or a `pretty_midi.PrettyMIDI` holds, as arrays: tracks of notes, meters, tempi, keys.

Files are read by symusic, after `sanitise.py` has looked at their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ae_music.grid import STEPS_PER_QUARTER, Meter, Notes
from ae_music.midi.sanitise import LONG_NAME, MAX_TRACKS, has_words, needs_sanitising, read_frame
from ae_toolkit import RunError
from ae_toolkit.files import read_bytes

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI

MAX_MIDI_BYTES = 4 << 20
MAX_STEPS = 1 << 17  #: 8,192 bars of 4/4, four and a half hours at 120
MAX_NOTES = 1_000_000
MAX_CHANGES = 1 << 16  #: of meter, tempo and key
MAX_SECONDS = 1e6  #: of an object, whose times are in seconds
MIDI_SUFFIXES = (".mid", ".midi", ".kar")
NOTATION_SUFFIXES = (".abc", ".musicxml", ".mxl", ".xml", ".krn")  #: what music21 reads, an extra
TEMPO_LIMITS = 10.0, 1000.0  #: quarter notes per minute that are believed


@dataclass(frozen=True, eq=False)  # of arrays there is no one truth: it equals itself only
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

    def on_grid(self, *, late: float = 0.0) -> Notes:
        """The notes on the nearest sixteenths, a half the next, each at least one long.

        Args:
            late: steps by which all are moved back first.
        """
        start, end = (np.floor(at - late + 0.5).astype(np.int64) for at in (self.start, self.end))
        start = np.maximum(start, 0)
        end = np.maximum(end, start + 1)
        return Notes(start, end, self.pitch.astype(np.int64), self.velocity.astype(np.int64))


class Change(NamedTuple):
    """Something that holds from a moment on, in steps."""

    at: float
    value: Any


@dataclass(frozen=True, eq=False)
class Score:
    """A piece.

    Attributes:
        tracks: in the order of the file, without empty ones.
        meters: the first at 0.
        tempi: quarter notes per minute, the first at 0.
        keys: as pretty_midi numbers them.
        title: what the file calls itself, if anything.
        knows_bars: whether its bar lines are where it says, so that no pickup need be found.
        words: `(N,)` steps at which a syllable is sung, where the file says so.
        tick: steps that its times are rounded to.
    """

    tracks: Sequence[Track]
    meters: Sequence[Change]
    tempi: Sequence[Change]
    keys: Sequence[Change]
    title: str = ""
    knows_bars: bool = False
    words: np.ndarray = field(default_factory=lambda: np.zeros(0))
    tick: float = 0.0

    @property
    def length(self) -> float:
        """Steps up to the end of the last note."""
        return max((float(track.end.max()) for track in self.tracks), default=0.0)


def read_score(path: Path) -> Score:
    """Reads a MIDI file, or by its ending what music21 reads.

    Raises:
        UsageError: there is no such file.
        RunError: it cannot be understood; the sentence says why.
    """
    if path.suffix.lower() in NOTATION_SUFFIXES:
        from ae_music.midi.notation import to_midi

        return replace(_parse(to_midi(path), path), knows_bars=True)
    return _parse(read_bytes(path, max_bytes=MAX_MIDI_BYTES), path)


def _parse(data: bytes, path: Path) -> Score:
    import symusic

    frame = read_frame(data, path)
    framed = frame.framed()
    if needs_sanitising(framed):
        frame = frame.repaired(path)
        framed = frame.framed()
    elif has_words(framed):
        with suppress(RunError):  # symusic may make more of it
            frame = frame.repaired(path)
    try:
        score: Any = symusic.Score.from_midi(framed)  # its annotations lack all attributes
    except Exception as error:  # whatever the parser raises
        frame.repaired(path)  # says it better, if it also finds something
        raise RunError(f"{path}: is cut short or broken ({_first_line(error)})") from error
    if len(score.tracks) > MAX_TRACKS:
        raise RunError(f"{path}: has more than {MAX_TRACKS:,} instruments")
    if sum(map(len, (score.time_signatures, score.tempos, score.key_signatures))) > MAX_CHANGES:
        raise RunError(f"{path}: has more than {MAX_CHANGES:,} changes of meter, tempo and key")
    scale = STEPS_PER_QUARTER / frame.division

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
    if not tracks and (num := frame.repaired(path).num_onsets):
        raise RunError(f"{path}: has no notes, none of the {num:,} that begin ever ends")
    meters = [Change(m.time * scale, (m.numerator, m.denominator)) for m in score.time_signatures]
    tempi = [Change(t.time * scale, float(t.qpm)) for t in score.tempos]
    keys = [Change(k.time * scale, _key_number(k.key, k.tonality)) for k in score.key_signatures]
    checked = _checked(tracks, meters, tempi, keys, where=f"{path}: ")
    return replace(checked, words=np.unique(frame.words) * scale, tick=scale)


def score_of(midi: PrettyMIDI) -> Score:
    """The same from an object of pretty_midi's.

    Raises:
        RunError: it holds what no melody can be made of.
    """
    where, scale = "the PrettyMIDI object: ", STEPS_PER_QUARTER / midi.resolution

    def steps(seconds: float) -> float:
        if not 0 <= seconds <= MAX_SECONDS:
            raise RunError(f"{where}has a note, meter, tempo or key at {seconds:.6g} seconds")
        return scale * midi.time_to_tick(seconds)

    tracks = []
    for instrument in midi.instruments:
        notes = sorted(instrument.notes, key=lambda note: (note.start, note.pitch))
        strange = [note.pitch for note in notes if not 0 <= note.pitch <= 127]
        if strange:
            raise RunError(f"{where}has a note of pitch {strange[0]}, and MIDI knows 0 to 127")
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
    return replace(_checked(tracks, meters, tempi, keys, where=where), tick=scale)


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
        raise RunError(f"{where}has no notes")
    if sum(map(len, tracks)) > MAX_NOTES:
        raise RunError(f"{where}has more than {MAX_NOTES:,} notes")
    if min(float(track.start.min()) for track in tracks) < 0:
        raise RunError(f"{where}has a note that begins before time 0")
    longest = max(float(track.end.max()) for track in tracks)
    if longest > MAX_STEPS:
        raise RunError(
            f"{where}lasts {longest / 4:,.0f} quarter notes, and more than {MAX_STEPS // 4:,} are "
            f"refused"
        )
    if any(float((track.end - track.start).min()) < 0 for track in tracks):
        raise RunError(f"{where}has a note that ends before it begins")
    good = [m for m in meters if _is_meter(*m.value) and m.at <= longest]
    heard = [t for t in tempi if t.at <= longest]
    believed = [t for t in heard if TEMPO_LIMITS[0] <= t.value <= TEMPO_LIMITS[1]]
    if heard and not believed:
        raise RunError(f"{where}has a tempo of {heard[0].value:.3g} quarter notes per minute")
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
