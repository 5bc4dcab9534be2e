"""`ae image grid`, `scatter` and `traverse`: what a latent space looks like."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ae_image.cli.inputs import data_of, labels_of, load_image_model, read_digits, read_pictures
from ae_image.cli.options import label_option, photo_option
from ae_toolkit import RunError, UsageError
from ae_toolkit.cli.options import (
    FiniteRange,
    device_option,
    json_option,
    model_option,
    out_option,
    warn_untrained_prior,
)
from ae_toolkit.files import announce

if TYPE_CHECKING:
    from ae_toolkit import Examples, Model


@click.command("grid")
@model_option("mnist-2d")
@out_option("grid.png")
@click.option("-n", "--size", default=20, show_default=True, type=click.IntRange(2, 100),
              help="Pictures per side.")  # fmt: skip
@click.option(
    "--axes", type=(int, int), metavar="I J", help="The two latent axes that vary, from 0."
)
@click.option("--through", type=(Path, Path, Path), metavar="A B C",
              help="Take the plane through the codes of three pictures.")  # fmt: skip
@click.option("--spread", default=1.0, show_default=True,
              type=FiniteRange(min=0, min_open=True),
              help="Stretches the Gaussian quantiles.")  # fmt: skip
@label_option
@device_option
def grid(
    model: str,
    out: Path,
    size: int,
    axes: tuple[int, int] | None,
    through: tuple[Path, Path, Path] | None,
    spread: float,
    labels: tuple[str, ...],
    device: str,
) -> None:
    """Draw what lies between: a square of codes, decoded.

    Codes stand at the quantiles of the prior, so that every picture is as likely as the next. A
    model with more than two latents varies its two most active axes, the two that you choose, or
    the plane through three pictures of yours.

    \b
    Examples:
      ae image grid -o grid.png
      ae image grid --model mnist-vae --axes 0 5
      ae image grid --model mnist-vae --through 3.png 5.png 8.png
    """
    if axes and through:
        raise UsageError("--axes and --through exclude each other")
    loaded = load_image_model(model, device)

    import torch

    from ae_image.figures import grid_figure, save_figure
    from ae_toolkit.inference import latent

    condition = labels_of(loaded, labels)
    if through:
        loaded.need_real_codes()
        a, b, c = loaded.encode(read_pictures(through, loaded), condition).cpu()
        near = (size - 2) // 6  # the margin, so that the three do not sit in the corners
        far = size - 1 - near
        square = latent.plane(a, b, c, size, margin=near)
        ticks: dict[str, Any] = {"corners": [(near, near), (near, far), (far, near)]}
    else:
        warn_untrained_prior(loaded)
        i, j = axes or _plane_axes(loaded, condition)
        across, down = latent.axes(loaded.z_dim, i, j)
        noise = latent.lattice(size, across=across, down=-down, spread=spread)
        square = (
            loaded.prior_transform(noise.flatten(0, 1), condition).cpu().unflatten(0, (size, size))
        )
        values = latent.quantiles(size, spread=spread).tolist()
        letter = "z" if torch.equal(square, noise) else r"\epsilon"
        ticks = {
            "across": values,
            "down": values[::-1],
            "labels": (f"${letter}_{{{i}}}$", f"${letter}_{{{j}}}$"),
        }
    pictures = loaded.decode(square.flatten(0, 1), condition)
    rows = [pictures[i * size : (i + 1) * size] for i in range(size)]
    save_figure(grid_figure(rows, **ticks), out)
    announce(f"{out}: {size}x{size} pictures of {model}")


def _plane_axes(model: Model, condition: dict[str, float]) -> list[int]:
    """The two axes of the prior that a grid varies unless told otherwise."""
    if model.z_dim < 2:
        raise UsageError("a grid needs at least two latents, and this model has one")
    return [0, 1] if model.z_dim == 2 else _by_activity(model, condition)[:2]


def _by_activity(model: Model, condition: dict[str, float]) -> list[int]:
    """The axes of the prior, first what changes the picture most one standard deviation away."""
    import torch

    ways = torch.cat([torch.eye(model.z_dim), -torch.eye(model.z_dim)])
    ahead, behind = model.decode_tensor(model.prior_transform(ways, condition), condition).chunk(2)
    return (ahead - behind).square().flatten(1).sum(1).argsort(descending=True).tolist()


@click.command("scatter")
@model_option("mnist-2d")
@out_option("scatter.png")
@click.option("--data", help="A data set with labels; the model's own unless given.")
@click.option("--num", default=5000, show_default=True, type=click.IntRange(10), help="Test codes.")
@json_option
@device_option
def scatter(model: str, out: Path, data: str | None, num: int, as_json: bool, device: str) -> None:
    """Draw where the classes lie: test codes coloured by label, PCA of the pictures beside them.

    Codes of more than two numbers are shown along their two principal axes. The share of test
    pictures that their 10 nearest neighbours in the plane would name rightly is in the titles.

    \b
    Example:
      ae image scatter --model mnist-2d -o scatter.png
    """
    loaded = load_image_model(model, device)

    from ae_image.figures import save_figure, scatter_figure
    from ae_toolkit.inference.evaluate import neighbour_accuracy, principal_axes

    examples = test_examples(loaded, data)
    if not examples.labels:
        raise UsageError(f"data set {data or loaded.recipe.data.name!r} has no labels to colour by")
    name, classes = next(iter(examples.labels.items()))
    examples, classes = examples.select(range(min(num, len(examples)))), classes[:num]

    codes = loaded.features(loaded.encode_examples(examples), examples.labels).cpu()
    pixels = loaded.modality.prepare(examples.y).flatten(1)
    flat = codes if codes.shape[1] == 2 else principal_axes(codes, 2)
    pca = principal_axes(pixels, 2)
    accuracy = {"code": neighbour_accuracy(flat, classes), "pca": neighbour_accuracy(pca, classes)}

    own = ("$z_0$", "$z_1$") if codes.shape[1] == 2 else ("first axis of $z$", "second axis of $z$")
    panels = {
        f"{model}: {accuracy['code']:.0%} by neighbours": (flat.numpy(), *own),
        f"PCA: {accuracy['pca']:.0%} by neighbours": (pca.numpy(), "first axis", "second axis"),
    }
    save_figure(scatter_figure(panels, classes.numpy(), name=name), out)
    if as_json:
        click.echo(json.dumps({"out": str(out), "num": len(examples), "accuracy": accuracy}))
    else:
        announce(f"{out}: {len(examples)} test codes of {model}")


def test_examples(model: Model, data: str | None = None) -> Examples:
    """The test split asked for; the bundled digits where the model's own data is not at hand."""
    if data:
        return data_of(model, data)
    from ae_toolkit.data.examples import load_data

    try:
        return load_data(model.recipe, model.modality, "test")
    except RunError as error:
        if model.recipe.data.name != "mnist":
            raise
        print(f"{error}; taking mnist-sample", file=sys.stderr)
        return data_of(model, "mnist-sample")


@click.command("traverse")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@model_option("mnist-vae")
@out_option("traverse.png")
@click.option("--axes", "chosen", help="Latent axes that vary, such as 0,5,7.  [default: the most "
              "active]")  # fmt: skip
@click.option("-n", "--num", default=8, show_default=True, type=click.IntRange(1, 64),
              help="How many axes, where none are chosen.")  # fmt: skip
@click.option("--steps", default=11, show_default=True, type=click.IntRange(2, 100),
              help="Pictures for each axis.")  # fmt: skip
@click.option("--spread", default=3.0, show_default=True,
              type=FiniteRange(min=0, min_open=True),
              help="How far to either side, in standard deviations.")  # fmt: skip
@photo_option
@label_option
@device_option
def traverse(
    file: Path | None,
    model: str,
    out: Path,
    chosen: str | None,
    num: int,
    steps: int,
    spread: float,
    photo: str,
    labels: tuple[str, ...],
    device: str,
) -> None:
    """Draw what each number of the code does: one latent axis a row, the others held.

    Starts from FILE's code, or from the middle of the prior.

    \b
    Examples:
      ae image traverse -o traverse.png
      ae image traverse three.png --axes 0,5,7
    """
    loaded = load_image_model(model, device)

    import torch

    from ae_image.figures import rows_figure, save_figure

    condition = labels_of(loaded, labels)
    warn_untrained_prior(loaded)
    axes = _parse_axes(chosen, loaded) if chosen else _by_activity(loaded, condition)[:num]
    ways = torch.linspace(-spread, spread, steps)
    if file is None:
        start = torch.zeros(loaded.z_dim)
    else:
        pictures = read_digits([file], loaded, photo=photo)
        loaded.need_real_codes()
        start = loaded.encode(pictures, condition)[0].cpu()
    rows = {}
    for axis in axes:
        codes = start.repeat(steps, 1)
        codes[:, axis] += ways
        # From the middle of the prior the walk is in its own coordinates, else in the code's.
        codes = loaded.prior_transform(codes, condition).cpu() if file is None else codes
        rows[f"axis {axis}"] = loaded.decode(codes, condition)
    captions = [f"{way:+.1f}".replace("-", "−") for way in (ways + 0.0).tolist()]
    save_figure(rows_figure(rows, captions=captions), out)
    announce(f"{out}: axes {', '.join(map(str, axes))} of {model}, {steps} steps each")


def _parse_axes(text: str, model: Model) -> list[int]:
    """Reads `0,5,7`."""
    try:
        axes = [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--axes takes numbers such as 0,5,7, not {text!r}") from None
    if wrong := [axis for axis in axes if not 0 <= axis < model.z_dim]:
        raise UsageError(f"--axes: there is no axis {wrong[0]}, only 0 to {model.z_dim - 1}")
    return axes
