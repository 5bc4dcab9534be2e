"""`ae image`: what people want to do with pictures. Heavy imports happen inside the callbacks."""

from __future__ import annotations

import math
from pathlib import Path

import click

from ae_image.cli.codes import maps, perturb
from ae_image.cli.inputs import labels_of, load_image_model, read_digits, to_pictures, to_tensors
from ae_image.cli.latent import grid, scatter, traverse
from ae_image.cli.options import label_option, photo_option
from ae_image.cli.reconstruct import reconstruct
from ae_image.cli.restoring import denoise, upscale
from ae_toolkit import UsageError
from ae_toolkit.cli.options import (
    FiniteRange,
    device_option,
    model_option,
    out_option,
    seed_option,
    warn_untrained_prior,
)
from ae_toolkit.files import announce


@click.group()
def image() -> None:
    """Pictures: restore, enlarge, generate, and see what a model has learned.

    \b
    Examples:
      ae image grid -o grid.png
      ae image denoise noisy.png -o clean.png
      ae image sample --model mnist-cvae --label 7 -o sevens.png
    """


@image.command()
@model_option("mnist-vae")
@out_option("samples.png")
@click.option("-n", "--num", default=64, show_default=True, type=click.IntRange(1, 10_000),
              help="How many pictures.")  # fmt: skip
@click.option("--temperature", default=1.0, show_default=True, type=FiniteRange(0),
              help="Spread of the codes; less is safer and duller.")  # fmt: skip
@label_option
@seed_option
@device_option
def sample(
    model: str,
    out: Path,
    num: int,
    temperature: float,
    labels: tuple[str, ...],
    seed: int,
    device: str,
) -> None:
    """Draw new pictures from the prior, on one sheet.

    A model that is conditioned on a class draws the one that --label names; without it, a table of
    its classes, one style to a row.

    \b
    Examples:
      ae image sample --model mnist-vae -n 64 -o samples.png
      ae image sample --model mnist-cvae --label 7 -o sevens.png
      ae image sample --model mnist-cvae -n 10 -o styles.png
    """
    loaded = load_image_model(model, device)

    from ae_image.figures import grid_figure, save_figure

    warn_untrained_prior(loaded)
    conditions = [*loaded.autoencoder.condition.items()]
    name, classes = conditions[0] if len(conditions) == 1 else ("", 0)
    is_table = classes > 0 and not labels
    condition = labels_of(loaded, labels, needed=not is_table)
    if is_table:  # the same noise in every class
        columns = [
            loaded.sample(min(num, 100), {name: k}, seed=seed, temperature=temperature)
            for k in range(classes)
        ]
        rows = [list(row) for row in zip(*columns, strict=True)]
        made = f"{len(rows)} styles of {model} in {classes} classes"
    else:
        pictures = loaded.sample(num, condition, seed=seed, temperature=temperature)
        side = math.ceil(math.sqrt(num))
        rows = [pictures[i : i + side] for i in range(0, num, side)]
        made = f"{num} pictures of {model}"
    save_figure(grid_figure(rows, columns=name if is_table else ""), out)
    announce(f"{out}: {made}, seed {seed}")


@image.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@model_option("mnist-vae")
@out_option("walk.png")
@click.option("--steps", default=9, show_default=True, type=click.IntRange(2, 200),
              help="Pictures in all, both ends included.")  # fmt: skip
@click.option("--path", default="slerp", show_default=True, type=click.Choice(["slerp", "lerp"]),
              help="Along the great arc or the straight line.")  # fmt: skip
@click.option("--gif/--no-gif", default=True, show_default=True,
              help="Also write the walk as an animation, OUT with the ending .gif.")  # fmt: skip
@photo_option
@label_option
@device_option
def interpolate(
    a: Path,
    b: Path,
    model: str,
    out: Path,
    steps: int,
    path: str,
    gif: bool,
    photo: str,
    labels: tuple[str, ...],
    device: str,
) -> None:
    """Walk from picture A to picture B through the codes of a model: a strip and an animation.

    \b
    Example:
      ae image interpolate three.png eight.png -o walk.png
    """
    loaded = load_image_model(model, device)

    from ae_image.figures import animate, rows_figure, save_figure

    if gif and out.suffix.lower() == ".gif":
        raise UsageError(f"{out}: the strip is a still picture, and the animation goes beside it")
    condition = labels_of(loaded, labels)
    ends = read_digits([a, b], loaded, photo=photo)
    walk = loaded.interpolate(*ends, steps=steps, path=path, labels=condition)
    first, last = to_pictures(to_tensors(ends, loaded), loaded)
    rows = {"": [first, *walk, last]}
    captions = [a.name, *("" for _ in walk), b.name]
    save_figure(rows_figure(rows, captions=captions), out)
    beside = ""
    if gif:
        animate(walk, out.with_suffix(".gif"))
        beside = f" and {out.with_suffix('.gif')}"
    announce(f"{out}{beside}: {steps} steps from {a} to {b}, between the two originals")


@image.command()
@out_option("lesson.html")
@click.option("--quick", is_flag=True, help="On 500 test digits instead of 5,000.")
@seed_option
@device_option
def lesson(out: Path, quick: bool, seed: int, device: str) -> None:
    """Write the lesson on autoencoders as one page, each claim run and measured.

    \b
    Examples:
      ae image lesson -o lesson.html
      ae image lesson --quick
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{out}: choose a name that ends in .html")

    from ae_image.cli.lesson.chapters import write_page
    from ae_image.cli.lesson.setup import Lesson
    from ae_toolkit.files import writing

    page = write_page(Lesson(num=500 if quick else 5000, seed=seed, device=device))
    with writing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    announce(f"{out}: open it in a browser")


for command in (grid, scatter, traverse, perturb, maps, reconstruct, denoise, upscale):
    image.add_command(command)
