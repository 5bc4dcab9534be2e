"""Options that several commands share, ours and plugins' alike; imports nothing but click."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ae_toolkit.errors import UsageError
from ae_toolkit.files import check_output, overwrite, printable, take_default

if TYPE_CHECKING:
    from ae_toolkit.inference.model import Model

Command = Callable[..., Any]

FIGURE_ENDINGS = (".png", ".svg", ".pdf")

device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 … or mps."
)
label_option = click.option(
    "--label", "labels", multiple=True, metavar="NAME=NUMBER", help="A condition."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
seed_option = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Repeats the same draw."
)


class FiniteRange(click.FloatRange):
    """A range of numbers, of which 'nan' is none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


def model_option(default: str) -> Callable[[Command], Command]:
    """`--model`: a bundled name, a run directory or a hub id."""
    return click.option(
        "--model", default=default, show_default=True, help="Bundled name, run directory or hub id."
    )


overwrite_option = click.option(
    "--overwrite",
    is_flag=True,
    expose_value=False,
    callback=lambda context, option, given: overwrite() if given else None,
    help="Replace files in the way that -o does not name.",
)


def out_option(default: str, help: str = "File to write.") -> Callable[[Command], Command]:
    """`-o`: the file to write. A default name replaces no file that this program did not write."""

    def remember(context: click.Context, option: click.Parameter, path: Path) -> Path:
        if context.get_parameter_source("out") is ParameterSource.DEFAULT:
            take_default(path)
        return path

    def decorate(command: Command) -> Command:
        option = click.option("-o", "--out", default=default, show_default=True, callback=remember,
                              type=click.Path(path_type=Path), help=help)  # fmt: skip
        return overwrite_option(option(command))

    return decorate


def report_skipped(skipped: Sequence[tuple[str, str]], *, total: int) -> None:
    """Lists files that could not be read, and why, and ends the command with exit code 1.

    Call it last: what the command has written stays. It does nothing where nothing was skipped.
    """
    if not skipped:
        return
    click.echo(f"skipped {len(skipped)} of {total} files:", err=True)
    for path, reason in skipped:
        click.echo(printable(f"  {path}: {reason}"), err=True)
    click.get_current_context().exit(1)


def warn_untrained_prior(model: Model) -> None:
    """Says on standard error that samples may look like nothing, where a model has no rate."""
    bottleneck = model.autoencoder.bottleneck
    is_drawn_to_it = getattr(bottleneck, "follows_prior", False)
    if not (model.has_rate or is_drawn_to_it or hasattr(bottleneck.prior, "fit")):
        click.echo(
            "This model charges its codes no rate, so they need not follow the prior that samples "
            "are drawn from: samples may look like nothing it was trained on.",
            err=True,
        )


def need_ending(path: Path | None, endings: Sequence[str]) -> None:
    """Refuses a name early, before any work is done; None is no name.

    Raises:
        UsageError: it ends in something that is not written, or as `check_output`.
        RunError: as `check_output`.
    """
    if path is None:
        return
    if path.suffix.lower() not in endings:
        raise UsageError(f"{path}: choose a name that ends in {' or '.join(endings)}")
    check_output(path)


def parse_labels(pairs: Iterable[str]) -> dict[str, float]:
    """Reads `name=number` pairs, whole numbers as such.

    Raises:
        UsageError: a pair is of another form.
    """
    labels: dict[str, float] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise UsageError(f"--label takes name=number, such as kind=7, not {pair!r}") from None
        labels[name] = int(number) if number.is_integer() else number
    return labels


def to_json(value: Any) -> str:
    """A text for a program to read."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def print_json(value: Any) -> None:
    """Prints for a program to read."""
    click.echo(to_json(value))


MAX_CELL_CHARS = 200  #: of a table; a broken file may bring a name of a million


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of cells in columns."""
    rows = [[printable(cell[:MAX_CELL_CHARS]) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
