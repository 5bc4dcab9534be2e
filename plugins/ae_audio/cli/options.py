"""Options that several commands of `ae audio` share, and how they are checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ae_audio import SOUND_SUFFIXES
from ae_toolkit.cli.options import FIGURE_ENDINGS, need_ending, out_option, overwrite_option

SOUND_PATH = click.Path(path_type=Path, readable=False)  #: what cannot be read is said when it is

Command = Callable[..., Any]


png_option = click.option("--png", type=click.Path(path_type=Path, dir_okay=False),
                          help="Also draw spectrograms (.png, .svg or .pdf).")  # fmt: skip


def out_options(default: str) -> Callable[[Command], Command]:
    """`-o`: the sound to write, `--overwrite` and `--png`."""
    out = out_option(default, "Sound to write (.wav, .flac or .ogg).")
    return lambda command: out(png_option(command))


def out_each_options(default: str) -> Callable[[Command], Command]:
    """`-o`: the sound to write, or the folder for several, `--overwrite` and `--png`."""
    out = click.option("-o", "--out", type=click.Path(path_type=Path),
                       help=f"Sound to write (.wav, .flac or .ogg); of several, the folder for the "
                            f"results.  [default: {default}.wav or {default}/]")  # fmt: skip
    return lambda command: out(overwrite_option(png_option(command)))


def check_endings(out: Path | None, png: Path | None) -> None:
    """Refuses names of other formats early, before any work is done."""
    need_ending(out, SOUND_SUFFIXES)
    need_ending(png, FIGURE_ENDINGS)
