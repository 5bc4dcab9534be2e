"""From melodies to `pretty_midi.PrettyMIDI`: in their own tempo, meter, key and instrument."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ae_music.grid import STEPS_PER_QUARTER, Melody, read_steps

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI

TICKS = 480  #: per quarter note
PER_STEP = TICKS // STEPS_PER_QUARTER


def to_midi(melodies: Sequence[Melody], *, names: Sequence[str] = ()) -> PrettyMIDI:
    """One melody after the other, each on its own bar lines.

    Args:
        melodies: in order. Those of one instrument share a track.
        names: of the melodies, written as marks in the text; none unless given.
    """
    import pretty_midi

    starts, end = [], 0
    for melody in melodies:
        starts.append(end)
        end += len(melody) * PER_STEP
    midi = _timeline(melodies, starts)
    tracks: dict[int, pretty_midi.Instrument] = {}
    for melody, start in zip(melodies, starts, strict=True):
        if melody.program not in tracks:
            tracks[melody.program] = pretty_midi.Instrument(melody.program, name=melody.name)
        for note in zip(*read_steps(melody.steps, melody.velocities), strict=True):
            first, last, pitch, velocity = (int(value) for value in note)
            tracks[melody.program].notes.append(
                pretty_midi.Note(
                    velocity,
                    pitch,
                    midi.tick_to_time(start + first * PER_STEP),
                    midi.tick_to_time(start + last * PER_STEP),
                )
            )
    midi.instruments = list(tracks.values())
    for name, start in zip(names, starts, strict=False):
        midi.lyrics.append(pretty_midi.Lyric(name, midi.tick_to_time(start)))
    return midi


def _timeline(melodies: Sequence[Melody], starts: Sequence[int]) -> PrettyMIDI:
    """An object without notes, with the tempo, meter and key of each melody from its start on.

    pretty_midi makes objects of one tempo only, but reads files of many: so it is given a file.
    """
    import mido
    import pretty_midi

    track, now, tempo = mido.MidiTrack(), 0, 0
    for melody, start in zip(melodies, starts, strict=True):
        wanted = min(round(60e6 / melody.tempo), 0xFFFFFF)
        if wanted != tempo:
            track.append(mido.MetaMessage("set_tempo", tempo=wanted, time=start - now))
            now, tempo = start, wanted
    buffer = io.BytesIO()
    mido.MidiFile(type=1, ticks_per_beat=TICKS, tracks=[track]).save(file=buffer)
    buffer.seek(0)
    midi = pretty_midi.PrettyMIDI(buffer)

    meter, key = None, None
    for melody, start in zip(melodies, starts, strict=True):
        time = midi.tick_to_time(start)
        if melody.meter != meter:
            meter = melody.meter
            midi.time_signature_changes.append(pretty_midi.TimeSignature(*meter, time))
        if melody.key != key and melody.key is not None:
            key = melody.key
            midi.key_signature_changes.append(pretty_midi.KeySignature(key, time))
    return midi
