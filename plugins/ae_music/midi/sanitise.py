"""The bytes of a MIDI file, before symusic sees them: its header, its tracks, and their events.

symusic is quick and believes every byte. So it is given the tracks in a new frame; and where a
glance finds what it would misread, they are gone through event by event first. A hostile file is
refused with a sentence before it costs time or memory.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ae_toolkit import RunError

MAX_TRACKS = 1024  #: and as many instruments
MAX_TICKS = 2**31 - 1  #: symusic counts on from below 0
LARGE_BYTES = 1 << 16  #: bytes from which a file is gone through event by event
LONG_NAME = 1024  #: bytes of a track's name; symusic copies it for each of its instruments

#: Kinds of meta events; words are sung as texts in karaoke files, as lyrics in others.
TEXT_EVENT, TRACK_NAME, LYRIC_EVENT, END_OF_TRACK, METER_EVENT = 0x01, 0x03, 0x05, 0x2F, 0x58
MIN_WORDS = 16  #: below which a file is not gone through for them
META_SIZES = {0x51: 3, METER_EVENT: 4, 0x59: 2}  #: bytes of those that are read as numbers
HALF_WIDTH = re.compile("[\uff61-\uff9f]")  #: kana that Chinese looks like, read as Japanese
STRANGE_METER = re.compile(rb"\xff\x58\x04.[\x08-\xff]", re.DOTALL)
HIGH_BYTES = b"0" * 128 + b"1" * 128  #: for each byte, whether it is at least 128


class Frame(NamedTuple):
    """What a MIDI file's frame holds: ticks per quarter note, and tracks, each a row of events.

    Attributes:
        division: ticks per quarter note.
        tracks: the events of each.
        num_onsets: of notes, where the events have been gone through.
        words: the ticks at which something is sung, where the events have been gone through.
    """

    division: int
    tracks: list[bytes]
    num_onsets: int = 0
    words: Sequence[int] = ()

    def framed(self) -> bytes:
        """A MIDI file. symusic reads a few bytes beyond a track's end, so there are some."""
        head = struct.pack(">4sIHHH", b"MThd", 6, 1, len(self.tracks), self.division)
        tracks = [_with_legible_name(track) for track in self.tracks]
        chunks = (struct.pack(">4sI", b"MTrk", len(t)) + t for t in tracks)
        return head + b"".join(chunks) + bytes(16)

    def repaired(self, path: Path) -> Frame:
        """The same, with what symusic misreads made harmless.

        Raises:
            RunError: there is something in it that is no event; or there is too much of it.
        """
        rows: list[_Events] = []
        for number, track in enumerate(self.tracks, start=1):
            where = f"{path}: is broken, in track {number} "
            try:
                rows.append(_parse_events(track))
            except IndexError:
                raise RunError(f"{where}an event reaches beyond the track's end") from None
            except ValueError as error:
                raise RunError(f"{where}{error}") from None
        longest = max(row.ticks for row in rows)
        if longest > MAX_TICKS:
            raise RunError(f"{path}: lasts {longest / self.division:,.0f} quarter notes")
        if sum(row.num_instruments for row in rows) > MAX_TRACKS:
            raise RunError(f"{path}: has more than {MAX_TRACKS:,} instruments")
        num_onsets = sum(row.num_onsets for row in rows)
        words = max((row.words[LYRIC_EVENT] or row.words[TEXT_EVENT] for row in rows), key=len)
        return Frame(self.division, [row.fixed for row in rows], num_onsets, words)


def decode_name(name: bytes) -> str:
    """A name in the encoding that it seems to be in: no file says which.

    Where most bytes are no ASCII, it is Japanese, Chinese or Cyrillic, if it makes sense as that;
    else it is Western European.
    """
    try:
        return name.decode()
    except UnicodeDecodeError:
        pass
    high = [byte for byte in name if byte >= 128]
    if len(high) > 2 and min(high) >= 0xC0 and min(high[1:]) >= 0xE0:
        return name.decode("cp1251")
    for encoding in ("cp932", "gb18030") if 2 * len(high) >= len(name) else ():
        try:
            text = name.decode(encoding)
        except UnicodeDecodeError:
            continue
        if text.isprintable() and not HALF_WIDTH.search(text):
            return text
    return name.decode("latin-1")


def _with_legible_name(track: bytes) -> bytes:
    """A track whose name, if it stands among the events that it begins with, is in UTF-8."""
    at = 0
    try:
        while track[at : at + 2] == b"\0\xff":
            kind = track[at + 2]
            size, first = _quantity(track, at + 3)
            name = track[first : first + size]
            if kind == TRACK_NAME and size <= LONG_NAME:
                new = decode_name(name).encode()[:LONG_NAME]
                length = bytes([128 | len(new) >> 7, len(new) & 127])
                return (
                    track if new == name else track[: at + 3] + length + new + track[first + size :]
                )
            at = first + size
    except IndexError:  # it is cut short; whatever reads it says so
        pass
    return track


def read_frame(data: bytes, path: Path) -> Frame:
    """Looks at the header and the frames of the tracks of a MIDI file.

    Raises:
        RunError: it is no MIDI file, or of a kind that holds no bars.
    """
    if not data:
        raise RunError(f"{path}: is empty")
    if data[:4] == b"RIFF" and (at := data.find(b"MThd", 0, 4096)) >= 4:
        data = data[at : at + int.from_bytes(data[at - 4 : at], "little")]
    if data[:4] != b"MThd":
        raise RunError(f"{path}: is not a MIDI file, it does not begin with 'MThd'")
    if len(data) < 14:
        raise RunError(f"{path}: is cut short within its header")
    length, kind, num_tracks, division = struct.unpack(">IHHH", data[4:14])
    if kind == 2:
        raise RunError(
            f"{path}: is of MIDI type 2, independent patterns, which have no one timeline"
        )
    if kind > 2 or length < 6:
        raise RunError(f"{path}: has a broken header (type {kind}, {length} bytes)")
    if division & 0x8000:
        raise RunError(f"{path}: is timed in SMPTE frames instead of beats, so it has no bars")
    if division == 0:
        raise RunError(f"{path}: has 0 ticks per quarter note")
    tracks: list[bytes] = []
    at = 8 + length
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "big")
        at += 8
        if at + size > len(data):
            if name != b"MTrk" or len(tracks) >= num_tracks:
                break
            missing = at + size - len(data)
            raise RunError(
                f"{path}: is cut short, track {len(tracks) + 1} misses {missing:,} bytes"
            )
        if name == b"MTrk":
            tracks.append(data[at : at + size])
        at += size
        if len(tracks) > MAX_TRACKS:
            raise RunError(f"{path}: has more than {MAX_TRACKS:,} tracks")
    if len(tracks) < num_tracks:
        raise RunError(
            f"{path}: is cut short or broken, it has {len(tracks)} of {num_tracks} tracks"
        )
    if not tracks:
        raise RunError(f"{path}: has no tracks")
    return Frame(division, tracks)


def needs_sanitising(data: bytes) -> bool:
    """Whether there may be something in a MIDI file that symusic misreads.

    That is: times that may overflow, for which there must be a number of four bytes, 512 of three
    or a large file; system-exclusive bytes; meta events of a wrong size, which may also be bytes
    that only look like one; a denominator above 128.
    """
    if len(data) > LARGE_BYTES or b"\xf0" in data or b"\xf7" in data:
        return True
    high = data.translate(HIGH_BYTES)
    if b"111" in high or high.count(b"11") >= 512:
        return True
    for kind, size in META_SIZES.items():
        name = bytes([0xFF, kind])
        if data.count(name) != data.count(name + bytes([size])):
            return True
    return STRANGE_METER.search(data) is not None


def has_words(data: bytes) -> bool:
    """Whether a MIDI file may hold the words of a song."""
    return max(data.count(bytes([0xFF, kind])) for kind in (TEXT_EVENT, LYRIC_EVENT)) >= MIN_WORDS


class _Events(NamedTuple):
    """The events of one track, and what they come to; of words, by their kind, the ticks."""

    fixed: bytes
    ticks: int
    num_instruments: int
    num_onsets: int
    words: dict[int, list[int]]


def _parse_events(track: bytes) -> _Events:
    """The events of a track, made harmless one by one.

    What symusic would misread becomes a text, which it passes over: meta events of a wrong size; a
    meter whose denominator overflows; a name so long that a copy for each instrument would fill the
    memory. A packet of system-exclusive bytes, which it takes for events, becomes a message.

    Raises:
        IndexError: an event reaches beyond the end.
        ValueError: there is no event where one must be; the sentence goes on from "in track 1".
    """
    fixed, end = bytearray(track), len(track)
    instruments: set[tuple[int, int]] = set()
    programs = [0] * 16
    words: dict[int, list[int]] = {LYRIC_EVENT: [], TEXT_EVENT: []}
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
                fixed[at + 1] = TEXT_EVENT
            elif kind in words and _is_sung(track[first : first + size]):
                words[kind].append(ticks)
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
            if (largest := max(value, other)) > 127:
                raise ValueError(f"there is a value of {largest}, and MIDI knows 0 to 127")
            if kind == 0x9 and other:
                instruments.add((channel, programs[channel]))
                num_onsets += 1
            elif kind == 0xC:
                programs[channel] = value
    if at > end:
        raise IndexError
    return _Events(bytes(fixed), ticks, len(instruments), num_onsets, words)


def _quantity(track: bytes, at: int) -> tuple[int, int]:
    """A number of one to four bytes, the last of which is below 128, and where it ends."""
    value = 0
    for last in range(at, at + 4):
        byte = track[last]
        value = value << 7 | byte & 127
        if byte < 128:
            break
    return value, last + 1


def _is_sung(text: bytes) -> bool:
    """Whether a text is a syllable, not a line's end, nor what karaoke files say of themselves."""
    return bool(text.strip(b" \\/\r\n\0")) and not text.startswith((b"@", b"%"))


def _is_strange(kind: int, size: int, data: bytes) -> bool:
    """Whether a meta event is misread; its data begin with its size."""
    if kind in META_SIZES:
        return data[0] != META_SIZES[kind] or (kind == METER_EVENT and data[2] > 7)
    return kind == TRACK_NAME and size > LONG_NAME
