"""From melodies to `pretty_midi.PrettyMIDI`: in their own tempo, meter, key and instrument."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ae_music.grid import STEPS_PER_QUARTER, Melody, read_steps
from ae_music.midi.score import TEMPO_LIMITS, Score, Track
from ae_toolkit import RunError
from ae_toolkit.files import RESULT_SIGNATURE

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI

TICK_RESOLUTIONS = (480, 96)  #: ticks per quarter note; the coarser one for very long pieces
MAX_TICKS = 10_000_000  #: of what pretty_midi takes
MAX_WRITTEN_STEPS = MAX_TICKS * STEPS_PER_QUARTER // TICK_RESOLUTIONS[-1]


def to_midi(melodies: Sequence[Melody], *, beneath: Sequence[Track] = ()) -> PrettyMIDI:
    """One melody after the other, each on its own bar lines.

    Args:
        melodies: in order. Those of one instrument share a track.
        beneath: an accompaniment, on the time line that the melodies' `start` is on; every melody
            gets as much of it as it is long.
    """
    import pretty_midi

    resolution = _resolution(sum(map(len, melodies)))
    per_step, starts, end = resolution // STEPS_PER_QUARTER, [], 0
    for melody in melodies:
        starts.append(end)
        end += len(melody) * per_step
    midi = _timeline(melodies, starts, resolution)
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
                    midi.tick_to_time(start + first * per_step),
                    midi.tick_to_time(start + last * per_step),
                )
            )
    midi.instruments = list(tracks.values())
    for track in beneath:
        instrument = pretty_midi.Instrument(track.program, track.is_drum, track.name)
        for melody, start in zip(melodies, starts, strict=True):
            onsets = np.maximum(track.start - melody.start, 0)
            ends = np.minimum(track.end - melody.start, len(melody))
            for i in np.flatnonzero(onsets < ends):
                instrument.notes.append(
                    pretty_midi.Note(
                        int(track.velocity[i]),
                        int(track.pitch[i]),
                        midi.tick_to_time(start + round(onsets[i] * per_step)),
                        midi.tick_to_time(start + round(ends[i] * per_step)),
                    )
                )
        midi.instruments.append(instrument)
    return midi


def score_to_midi(score: Score) -> PrettyMIDI:
    """All of a score, as it is."""
    import pretty_midi

    resolution = _resolution(score.length)
    per_step = resolution // STEPS_PER_QUARTER
    midi = _tempi([(round(t.at * per_step), t.value) for t in score.tempi], resolution)
    midi.tick_to_time(round(score.length * per_step) + 1)  # as above, once
    for change in score.meters:
        time = midi.tick_to_time(round(change.at * per_step))
        midi.time_signature_changes.append(pretty_midi.TimeSignature(*change.value, time))
    for track in score.tracks:
        instrument = pretty_midi.Instrument(track.program, track.is_drum, track.name)
        columns = (track.start, track.end, track.pitch, track.velocity)
        for first, last, pitch, velocity in zip(*columns, strict=True):
            start, end = (midi.tick_to_time(round(at * per_step)) for at in (first, last))
            instrument.notes.append(pretty_midi.Note(int(velocity), int(pitch), start, end))
        midi.instruments.append(instrument)
    return midi


def check_length(num_steps: float) -> None:
    """Refuses what is too long for one MIDI file.

    Raises:
        RunError: pretty_midi cannot hold a piece of so many steps.
    """
    if num_steps >= MAX_WRITTEN_STEPS:
        raise RunError(
            f"{num_steps / 16:,.0f} bars of 4/4 are more than one MIDI file can be made of here; "
            f"ask for fewer or shorter melodies"
        )


def _resolution(num_steps: float) -> int:
    """Ticks per quarter note, as many as a piece of so many steps allows.

    Raises:
        RunError: as `check_length`.
    """
    check_length(num_steps)
    fine, coarse = TICK_RESOLUTIONS
    return fine if num_steps * fine / STEPS_PER_QUARTER < MAX_TICKS else coarse


def _timeline(melodies: Sequence[Melody], starts: Sequence[int], resolution: int) -> PrettyMIDI:
    """An object without notes, with the tempo, meter and key of each melody from its start on."""
    import pretty_midi

    changes = [(at, melody.tempo) for melody, at in zip(melodies, starts, strict=True)]
    midi = _tempi(changes, resolution)
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


def _tempi(changes: Sequence[tuple[int, float]], resolution: int) -> PrettyMIDI:
    """An object with nothing in it but tempi: `(tick, quarter notes per minute)`.

    pretty_midi makes objects of one tempo only, but reads files of many: so it is given a file.
    What is written from it has names in UTF-8 and says who wrote it.
    """
    import mido
    import pretty_midi

    track, now, before = mido.MidiTrack(), 0, 0
    for at, value in changes:
        tempo = round(60e6 / min(max(value, TEMPO_LIMITS[0]), TEMPO_LIMITS[1]))
        if tempo != before:
            track.append(mido.MetaMessage("set_tempo", tempo=tempo, time=at - now))
            now, before = at, tempo
    buffer = io.BytesIO()
    mido.MidiFile(type=1, ticks_per_beat=resolution, tracks=[track]).save(file=buffer)
    buffer.seek(0)
    midi = pretty_midi.PrettyMIDI(buffer, charset="utf-8")
    midi.text_events.append(pretty_midi.Text(RESULT_SIGNATURE, 0.0))
    return midi
