"""Options that several commands of `ae image` share."""

from __future__ import annotations

from pathlib import Path

import click

files_argument = click.argument("files", nargs=-1, type=click.Path(path_type=Path, readable=False))
figure_option = click.option(
    "--figure", type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw before and after, side by side, into this file; for one picture.",
)  # fmt: skip
invert_option = click.option(
    "--invert", default="auto", show_default=True, type=click.Choice(["auto", "yes", "no"]),
    help="Whether dark on light is turned round for the model, and back after it.",
)  # fmt: skip
photo_option = click.option(
    "--photo", default="auto", show_default=True, type=click.Choice(["auto", "yes", "no"]),
    help="Whether a photograph of a digit is inverted, cropped and centred first.",
)  # fmt: skip
label_option = click.option(
    "--label", "labels", multiple=True, metavar="[NAME=]K", help="A condition, e.g. digit=7."
)
