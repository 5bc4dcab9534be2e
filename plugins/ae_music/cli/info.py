"""What a file holds, in words: its tracks, its sections, and which melody would be taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pretty_midi

from ae_music.grid import KNOWN_METERS, METER_CLASSES, meter_class
from ae_music.midi.choose import choose_track
from ae_music.midi.extract import melodies_of
from ae_music.midi.score import read_score
from ae_music.midi.timing import describe_timing, timing_of
from ae_music.modality import has_pickup, octave_shift


def describe(path: Path, *, track: str | None = None) -> dict[str, Any]:
    """A report on a file.

    Raises:
        UsageError: there is no such file or track.
        RunError: the file cannot be understood, or has no melody.
    """
    score = read_score(path)
    chosen, reason = choose_track(score, track, where=f"{path}: ")
    timing = timing_of(chosen, tick=score.tick)
    tracks = [
        {
            "number": number,
            "name": each.name,
            "instrument": "drums"
            if each.is_drum
            else pretty_midi.program_to_instrument_name(each.program),
            "notes": len(each),
            "lowest": _note(each.pitch.min()),
            "highest": _note(each.pitch.max()),
            "melody": each is chosen or (track == "all" and not each.is_drum),
        }
        for number, each in enumerate(score.tracks, start=1)
    ]
    sections, before = [], 0
    for melody in melodies_of(score, track=track, where=f"{path}: "):
        sections.append(
            {
                "bars": f"{before + 1}:{before + melody.num_bars}",
                "meter": str(melody.meter),
                "model_meter": str(KNOWN_METERS[meter_class(melody.meter)]),
                "known": melody.meter in METER_CLASSES,
                "tempo": round(melody.tempo, 2),
                "key": None
                if melody.key is None
                else pretty_midi.key_number_to_key_name(melody.key),
                "pickup": has_pickup(melody),
                "notes": melody.num_notes,
                "octaves": octave_shift(melody),
                "opening": " ".join(_note(pitch) for pitch in melody.pitches[:8]),
            }
        )
        before += melody.num_bars
    return {
        "file": str(path),
        "title": score.title,
        "tracks": tracks,
        "chosen": reason,
        "off_grid": round(timing.off, 4),
        "timing": describe_timing(timing),
        "sections": sections,
    }


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A report as people read it."""
    title = f": {report['title']}" if report["title"] else ""
    yield f"{report['file']}{title}"
    for track in report["tracks"]:
        mark = "*" if track["melody"] else " "
        span = f"{track['lowest']} to {track['highest']}"
        name = f"{track['name']}, " if track["name"] else ""
        yield (
            f"{mark} track {track['number']}: {name}{track['instrument']}, {track['notes']} notes, "
            f"{span}"
        )
    yield f"* is {report['chosen']}"
    yield "the melody is its skyline, the highest note at any moment:"
    if report["timing"]:
        yield f"  {report['timing']}"
    for section in report["sections"]:
        key = f", {section['key']}" if section["key"] else ""
        pickup = ", the first is a pickup" if section["pickup"] else ""
        tempo = f"{section['tempo']:g} quarter notes a minute"
        yield (
            f"  bars {section['bars']}{pickup}, in {section['meter']}, {tempo}{key}, "
            f"{section['notes']} notes: {section['opening']} …"
        )
        if not section["known"]:
            yield f"    models bar {section['meter']} as {section['model_meter']}"
        if section["octaves"]:
            way = "up" if section["octaves"] > 0 else "down"
            octaves = abs(section["octaves"])
            moved = f"{octaves} octave{'s' if octaves > 1 else ''} {way}"
            yield f"    models see it {moved}, and what they make of it is moved back"


def _note(pitch: Any) -> str:
    return str(pretty_midi.note_number_to_name(int(pitch)))
