"""Options that several commands of `ae music` share, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ae_toolkit import UsageError
from ae_toolkit.cli.options import FIGURE_ENDINGS, need_ending, out_option

if TYPE_CHECKING:
    from ae_music.grid import Meter

MELODY_PATH = click.Path(path_type=Path, readable=False)  #: what cannot be read is said when it is
MIDI_ENDINGS = (".mid", ".midi")
SOUND_ENDINGS = (".wav", ".flac", ".ogg")

Command = Callable[..., Any]


def midi_option(default: str, *, many: bool = False) -> Callable[[Command], Command]:
    """`-o`: the MIDI file to write, and beside it `--wav` and `--png`.

    Args:
        default: its name.
        many: whether the command takes several files, for which it is a folder.
    """
    folder = "; of several FILES, the folder" if many else ""

    def decorate(command: Command) -> Command:
        for option in (
            click.option("--png", type=click.Path(path_type=Path),
                         help="Also draw piano rolls (.png, .pdf or .svg)."),
            click.option("--wav", type=click.Path(path_type=Path),
                         help="Also write sound (.wav, .flac or .ogg)."),
            out_option(default, f"MIDI file to write{folder}."),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def melody_options(*, num_files: int) -> Callable[[Command], Command]:
    """`--track` and `--bars`: which melody of a file, or of each of two."""
    twice = "; give it twice for A and B" if num_files == 2 else ""

    def decorate(command: Command) -> Command:
        for option in (
            click.option("--bars", multiple=True, metavar="FIRST:LAST",
                         help=f"Which bars, counted from 1{twice}."),
            click.option("--track", "tracks", multiple=True,
                         help=f"Which track is the melody: its number, its name, or 'all'{twice}."),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def each_option(what: str) -> Callable[[Command], Command]:
    """`--each`: a folder in which each of several melodies is a file of its own."""
    return click.option("--each", type=click.Path(path_type=Path, file_okay=False),
                        metavar="FOLDER", help=f"Also write every {what} as a file of its "
                        "own.")  # fmt: skip


def parse_meter(text: str) -> Meter:
    """Reads `6/8`.

    Raises:
        UsageError: models know no such meter.
    """
    from ae_music.grid import KNOWN_METERS, METER_CLASSES, Meter

    numerator, _, denominator = text.partition("/")
    if numerator.isdecimal() and denominator.isdecimal():
        meter = Meter(int(numerator), int(denominator))
        if meter in KNOWN_METERS:
            return meter
        if meter in METER_CLASSES and meter.steps == METER_CLASSES[meter].steps:
            return METER_CLASSES[meter]
    raise UsageError(f"--meter {text!r}: choose from {', '.join(map(str, KNOWN_METERS))}")


def is_many(files: Sequence[Path]) -> bool:
    """Whether several files, or a folder of them, are asked for."""
    return len(files) > 1 or any(file.is_dir() for file in files)


def check_folder(out: Path, *others: Path | None) -> None:
    """Refuses what several files cannot be written to, early.

    Args:
        out: must be no file.
        others: files that are written for a single one only.

    Raises:
        UsageError: `out` looks like a file's name, or one of the others is asked for.
    """
    if out.suffix.lower() in (*MIDI_ENDINGS, *SOUND_ENDINGS) or out.is_file():
        raise UsageError(f"{out}: results of several files go into a folder, name one with -o")
    if any(other is not None for other in others):
        raise UsageError("--wav and --png are for a single file, and there are several")


def check_outputs(files: Sequence[Path], out: Path, wav: Path | None, png: Path | None) -> None:
    """Refuses early what the results of such files cannot be written to."""
    if is_many(files):
        check_folder(out, wav, png)
    else:
        check_endings(out, wav, png)


def check_endings(out: Path, wav: Path | None, png: Path | None) -> None:
    """Refuses names of other formats early, before any work is done."""
    need_ending(out, MIDI_ENDINGS)
    need_ending(wav, SOUND_ENDINGS)
    need_ending(png, FIGURE_ENDINGS)
