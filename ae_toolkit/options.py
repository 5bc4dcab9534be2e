"""Options that several commands share, ours and plugins' alike; imports nothing but click."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]

device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 … or mps."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
seed_option = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Repeats the same draw."
)


def model_option(default: str) -> Callable[[Command], Command]:
    """`--model`: a bundled name, a run directory or a hub id."""
    return click.option(
        "--model", default=default, show_default=True, help="Bundled name, run directory or hub id."
    )


def out_option(default: str) -> Callable[[Command], Command]:
    """`-o`: the file to write."""
    return click.option(
        "-o",
        "--out",
        default=default,
        show_default=True,
        type=click.Path(path_type=Path, dir_okay=False),
        help="File to write.",
    )
