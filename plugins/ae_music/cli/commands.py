"""`ae music`: what people want to do with melodies. Heavy imports happen inside the callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ae_music.cli.generate import interpolate, sample, shift, vary
from ae_music.cli.inputs import read_each, tune_names
from ae_music.cli.options import MELODY_PATH, SOUND_ENDINGS, check_folder, is_many
from ae_music.cli.outputs import write_sound
from ae_toolkit.cli.options import (
    FIGURE_ENDINGS,
    device_option,
    json_option,
    model_option,
    need_ending,
    overwrite_option,
    print_json,
    report_skipped,
    seed_option,
)
from ae_toolkit.files import announce, printable

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI


@click.group()
def music() -> None:
    """Melodies: blend, vary, shift, sample and hear them.

    \b
    Examples:
      ae music interpolate drowsy-maggie smash-the-windows-reel -o blend.mid --wav blend.wav
      ae music sample -n 4 -o new.mid
      ae music info tune.mid
    """


@music.command()
@click.argument("files", nargs=-1, required=True, type=MELODY_PATH)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path),
              help="Sound file to write: .wav, .flac or .ogg; of several FILES, the "
                   "folder.")  # fmt: skip
@overwrite_option
@click.option("--soundfont", type=click.Path(path_type=Path),
              help="An .sf2 file.  [default: the one that pretty_midi ships]")  # fmt: skip
def render(files: tuple[Path, ...], out: Path, soundfont: Path | None) -> None:
    """Turn FILES, all of their tracks, into sound.

    FluidSynth plays it where it is installed; elsewhere plain waves do.

    \b
    Examples:
      ae music render tune.mid -o tune.wav
      ae music render my_midi/ -o sounds/
    """
    if is_many(files):
        check_folder(out)
    else:
        need_ending(out, SOUND_ENDINGS)

    from ae_music.midi.render import check_duration
    from ae_music.midi.score import read_score
    from ae_music.midi.write import score_to_midi

    def read(file: Path) -> tuple[Path, PrettyMIDI]:
        midi = score_to_midi(read_score(file))
        check_duration(midi, subject=f"{file}:")
        return file, midi

    found = read_each(files, read, out=out, ending=".wav")
    for place, (file, midi) in zip(found.places, found.items, strict=True):
        write_sound(midi, place, soundfont=soundfont, named=not found.many)
        announce(f"{place}: {midi.get_end_time():.1f} s of {file}")
    report_skipped(found.skipped, total=found.num_files)


@music.command()
@click.argument("files", nargs=-1, type=MELODY_PATH)
@click.option("--track", help="Which track is the melody: its number, its name, or 'all'.")
@json_option
def info(files: tuple[Path, ...], track: str | None, as_json: bool) -> None:
    """Show what FILES hold, which melody would be taken from each, and why.

    Without FILES, the bundled tunes are listed.

    \b
    Examples:
      ae music info tune.mid
      ae music info song.mid --track 2
      ae music info my_midi/ --json
    """
    from ae_music.cli.info import describe, lines

    if not files:
        if as_json:
            print_json(tune_names())
            return
        for name in tune_names():
            click.echo(name)
        return
    found = read_each(files, lambda file: describe(file, track=track))
    if as_json:
        print_json(found.items if found.many else found.items[0])
    else:
        for report in found.items:
            for line in lines(report):
                click.echo(printable(line))
    report_skipped(found.skipped, total=found.num_files)


@music.command()
@model_option("melody-2bar")
@click.option("--data", help="A data set, file or folder; of a folder, the tenth left out is used.")
@click.option("--limit", type=click.IntRange(1), help="Reconstruct only the first so many windows.")
@click.option("--png", type=click.Path(path_type=Path),
              help="Draw the Hamming distance along interpolations.")  # fmt: skip
@seed_option
@json_option
@device_option
def evaluate(
    model: str,
    data: str | None,
    limit: int | None,
    png: Path | None,
    seed: int,
    as_json: bool,
    device: str,
) -> None:
    """Measure a model of melodies as MusicVAE's paper does, on tunes that it has not seen.

    \b
    Examples:
      ae music evaluate --json
      ae music evaluate --model runs/mine --data my_midi/
    """
    need_ending(png, FIGURE_ENDINGS)

    from ae_music.latent.blend import load_melody_model
    from ae_music.latent.evaluate import measure, table
    from ae_music.modality import modality_of

    loaded = load_melody_model(model, device)
    numbers = measure(loaded, data=data, limit=limit, seed=seed, progress=not as_json)
    if png is not None:
        from ae_music.figures import path_figure, save_figure

        save_figure(path_figure(numbers.curves, ylabel="Hamming distance to A"), png)
    if as_json:
        print_json({**numbers.report, "curves": numbers.curves})
        return
    for line in table(numbers.report, bars=modality_of(loaded).bars):
        click.echo(line)


for command in (interpolate, sample, vary, shift):
    music.add_command(command)
