"""What the commands write: melodies as MIDI, sound and piano rolls, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ae_toolkit.files import printable

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI

    from ae_music.cli.inputs import Source
    from ae_music.grid import Melody
    from ae_music.midi.score import Track

SAMPLE_RATE = 44_100  #: samples per second
MAX_DRAWN = 40  #: melodies in one picture


def write_results(
    melodies: Sequence[Melody],
    out: Path,
    *,
    wav: Path | None = None,
    each: Path | None = None,
    beneath: Sequence[Track] = (),
    named: bool = True,
) -> None:
    """Writes melodies one after the other as MIDI and, where asked for, as sound and one by one.

    Args:
        melodies: in order.
        out: the MIDI file.
        wav: also write sound there.
        each: a folder, where each melody is written to as well.
        beneath: an accompaniment, as `to_midi` takes it.
        named: whether the user named `out` itself, not only its folder.
    """
    from ae_music.midi.write import to_midi
    from ae_toolkit.files import writing

    midi = to_midi(melodies, beneath=beneath)
    with writing(out, named=named) as temporary:
        midi.write(str(temporary))
    if wav is not None:
        write_sound(midi, wav)
    if each is not None:
        for i, melody in enumerate(melodies):
            with writing(each / f"{out.stem}-{i:02}.mid", named=False) as temporary:
                to_midi([melody], beneath=beneath).write(str(temporary))


def write_sound(
    midi: PrettyMIDI, path: Path, *, soundfont: Path | None = None, named: bool = True
) -> None:
    """Renders and writes; says on standard error, once a command, what would sound better."""
    from ae_music.midi.render import render, write_wav

    audio, notice = render(midi, soundfont=soundfont, rate=SAMPLE_RATE)
    said = click.get_current_context().meta.setdefault(__name__, set())
    if notice and notice not in said:
        click.echo(notice, err=True)
        said.add(notice)
    write_wav(audio, path, rate=SAMPLE_RATE, named=named)


def draw_rolls(melodies: Sequence[Melody], png: Path | None) -> None:
    """Draws melodies below each other, if a place for the picture is named."""
    if png is None:
        return
    from ae_music.figures import rolls_figure, save_figure

    if len(melodies) > MAX_DRAWN:
        click.echo(printable(f"{png}: shows the first {MAX_DRAWN} of {len(melodies)}"), err=True)
    save_figure(rolls_figure({m.name: [m] for m in melodies[:MAX_DRAWN]}), png)


def say_choices(*sources: Source) -> None:
    """Tells on standard error what was chosen and lost, and what was done about two meters."""
    sentences = [sentence for source in sources for sentence in source.said]
    if len(sources) == 2:
        from ae_music.grid import meter_class

        a, b = (source.melody for source in sources)
        if meter_class(a.meter) != meter_class(b.meter):
            sentences.append(
                f"{b.name} is in {b.meter} and {a.name} in {a.meter}: on the way, the notes of "
                f"{b.name} keep their lengths and get bar lines in {a.meter}"
            )
    for sentence in dict.fromkeys(sentences):  # A and B may be one file
        click.echo(printable(sentence), err=True)


def describe_steps(walk: Sequence[Melody]) -> list[dict[str, Any]]:
    """What is told of each melody on a way, for programs."""
    from ae_music.latent.blend import hamming

    return [
        {
            "bars": melody.num_bars,
            "meter": str(melody.meter),
            "tempo": round(melody.tempo, 3),
            "notes": melody.num_notes,
            "distance_to_a": round(hamming(melody, walk[0]), 4),
            "distance_to_b": round(hamming(melody, walk[-1]), 4),
        }
        for melody in walk
    ]
