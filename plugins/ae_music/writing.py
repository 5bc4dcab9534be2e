"""From melodies to `pretty_midi.PrettyMIDI`: in their own tempo, meter, key and instrument."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ae_music.grid import STEPS_PER_QUARTER, Melody, read_steps
from ae_music.score import Score, Track

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI

TICKS = 480  #: per quarter note
PER_STEP = TICKS // STEPS_PER_QUARTER


def to_midi(melodies: Sequence[Melody], *, beneath: Sequence[Track] = ()) -> PrettyMIDI:
    """One melody after the other, each on its own bar lines.

    Args:
        melodies: in order. Those of one instrument share a track.
        beneath: an accompaniment, on the time line that the melodies' `start` is on; every melody
            gets as much of it as it is long.
    """
    import pretty_midi

    starts, end = [], 0
    for melody in melodies:
        starts.append(end)
        end += len(melody) * PER_STEP
    midi = _timeline(melodies, starts)
    midi.tick_to_time(end)  # pretty_midi's table of ticks, grown once and not with every note
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
    for track in beneath:
        instrument = pretty_midi.Instrument(track.program, track.is_drum, track.name)
        for melody, start in zip(melodies, starts, strict=True):
            first = track.start - melody.start
            last = np.minimum(track.end - melody.start, len(melody))
            for i in np.flatnonzero((first >= 0) & (first < len(melody)) & (first < last)):
                instrument.notes.append(
                    pretty_midi.Note(
                        int(track.velocity[i]),
                        int(track.pitch[i]),
                        midi.tick_to_time(start + round(first[i] * PER_STEP)),
                        midi.tick_to_time(start + round(last[i] * PER_STEP)),
                    )
                )
        midi.instruments.append(instrument)
    return midi


def score_to_midi(score: Score) -> PrettyMIDI:
    """All of a score, as it is."""
    import pretty_midi

    midi = _tempi([(round(t.at * PER_STEP), t.value) for t in score.tempi])
    midi.tick_to_time(round(score.length * PER_STEP) + 1)  # as above, once
    for change in score.meters:
        time = midi.tick_to_time(round(change.at * PER_STEP))
        midi.time_signature_changes.append(pretty_midi.TimeSignature(*change.value, time))
    for track in score.tracks:
        instrument = pretty_midi.Instrument(track.program, track.is_drum, track.name)
        columns = (track.start, track.end, track.pitch, track.velocity)
        for first, last, pitch, velocity in zip(*columns, strict=True):
            start, end = (midi.tick_to_time(round(at * PER_STEP)) for at in (first, last))
            instrument.notes.append(pretty_midi.Note(int(velocity), int(pitch), start, end))
        midi.instruments.append(instrument)
    return midi


def _timeline(melodies: Sequence[Melody], starts: Sequence[int]) -> PrettyMIDI:
    """An object without notes, with the tempo, meter and key of each melody from its start on."""
    import pretty_midi

    midi = _tempi([(at, melody.tempo) for melody, at in zip(melodies, starts, strict=True)])
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


def _tempi(changes: Sequence[tuple[int, float]]) -> PrettyMIDI:
    """An object with nothing in it but tempi: `(tick, quarter notes per minute)`.

    pretty_midi makes objects of one tempo only, but reads files of many: so it is given a file.
    """
    import mido
    import pretty_midi

    track, now, before = mido.MidiTrack(), 0, 0
    for at, value in changes:
        tempo = min(round(60e6 / value), 0xFFFFFF)
        if tempo != before:
            track.append(mido.MetaMessage("set_tempo", tempo=tempo, time=at - now))
            now, before = at, tempo
    buffer = io.BytesIO()
    mido.MidiFile(type=1, ticks_per_beat=TICKS, tracks=[track]).save(file=buffer)
    buffer.seek(0)
    return pretty_midi.PrettyMIDI(buffer)
