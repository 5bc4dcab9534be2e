"""`ae image`: what people want to do with pictures. Heavy imports happen inside the callbacks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ae_toolkit import Failure, Misuse
from ae_toolkit.options import (
    device_option,
    json_option,
    model_option,
    out_option,
    parse_labels,
    seed_option,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ae_toolkit import Examples, Model


@click.group()
def image() -> None:
    """Pictures: latent grids, cluster diagrams, samples.

    \b
    Example:
      ae image grid -o grid.png
    """


def load_image_model(name: str, device: str) -> Model:
    """Loads a model and makes sure that it is one of pictures."""
    from ae_image.modality import Image
    from ae_toolkit import load

    model = load(name, device=device)
    if not isinstance(model.modality, Image):
        raise Misuse(
            f"model {name!r} is of data type {model.recipe.modality.name!r}, and 'ae image' needs "
            f"one of pictures"
        )
    return model


def read_pictures(paths: list[Path], model: Model) -> list[Any]:
    """Reads picture files; a file with several frames counts as its first."""
    return [next(iter(model.modality.read(path))) for path in paths]


@image.command()
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
              type=click.FloatRange(min=0, min_open=True),
              help="Stretches the Gaussian quantiles.")  # fmt: skip
@click.option(
    "--label", "labels", multiple=True, metavar="NAME=K", help="A condition, e.g. digit=7."
)
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
        raise Misuse("--axes and --through exclude each other")
    loaded = load_image_model(model, device)

    import torch

    from ae_image.figures import grid_figure, save_figure
    from ae_toolkit import latent

    condition = parse_labels(labels)
    if through:
        codes = loaded.encode(read_pictures(list(through), loaded), condition).cpu()
        near = (size - 2) // 6  # the margin, so that the three do not sit in the corners
        far = size - 1 - near
        square = latent.plane(*codes, size, margin=near)
        ticks: dict[str, Any] = {"corners": [(near, near), (near, far), (far, near)]}
    else:
        i, j = axes or _most_active(loaded, condition)
        across, down = latent.axes(loaded.z_dim, i, j)
        noise = latent.lattice(size, across=across, down=-down, spread=spread)
        square = loaded.push(noise.flatten(0, 1), condition).cpu().unflatten(0, (size, size))
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
    click.echo(f"{out}: {size}x{size} pictures of {model}")


def _most_active(model: Model, condition: dict[str, float]) -> tuple[int, int]:
    """The two axes of the prior that change the picture most, one standard deviation either way."""
    import torch

    if model.z_dim < 2:
        raise Misuse("a grid needs at least two latents, and this model has one")
    if model.z_dim == 2:
        return 0, 1
    ways = torch.cat([torch.eye(model.z_dim), -torch.eye(model.z_dim)])
    ahead, behind = model.decode_tensor(model.push(ways, condition), condition).chunk(2)
    first, second = (ahead - behind).square().flatten(1).sum(1).topk(2).indices.tolist()
    return first, second


def data_of(model: Model, name: str) -> Examples:
    """The test split of a data set, in the model's form."""
    from ae_toolkit.data import from_option, load_data

    recipe = model.recipe.with_({"data": from_option(name).model_dump()})
    return load_data(recipe, model.modality, "test")


@image.command()
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
    from ae_toolkit.evaluate import neighbour_accuracy, principal_axes

    examples = _labelled(loaded, data)
    if not examples.labels:
        raise Misuse(f"data set {data or loaded.recipe.data.name!r} has no labels to colour by")
    name, classes = next(iter(examples.labels.items()))
    examples, classes = examples.select(range(min(num, len(examples)))), classes[:num]

    codes = loaded.encode_examples(examples).cpu()
    pixels = loaded.modality.prepare(examples.y).flatten(1)
    flat = codes if codes.shape[1] == 2 else principal_axes(codes, 2)
    pca = principal_axes(pixels, 2)
    accuracy = {"code": neighbour_accuracy(flat, classes), "pca": neighbour_accuracy(pca, classes)}

    def panel(points: Tensor, x: str, y: str) -> tuple[Any, str, str]:
        return points.numpy(), x, y

    own = ("$z_0$", "$z_1$") if codes.shape[1] == 2 else ("first axis of $z$", "second axis of $z$")
    panels = {
        f"{model}: {accuracy['code']:.0%} by neighbours": panel(flat, *own),
        f"PCA: {accuracy['pca']:.0%} by neighbours": panel(pca, "first axis", "second axis"),
    }
    save_figure(scatter_figure(panels, classes.numpy(), name=name), out)
    if as_json:
        click.echo(json.dumps({"out": str(out), "num": len(examples), "accuracy": accuracy}))
    else:
        click.echo(f"{out}: {len(examples)} test codes of {model}")


def _labelled(model: Model, data: str | None) -> Examples:
    """The test split asked for; the bundled digits where the model's own data is not at hand."""
    if data:
        return data_of(model, data)
    from ae_toolkit.data import load_data

    try:
        return load_data(model.recipe, model.modality, "test")
    except Failure as error:
        if model.recipe.data.name != "mnist":
            raise
        print(f"{error}; taking mnist-sample", file=sys.stderr)
        return data_of(model, "mnist-sample")


@image.command()
@model_option("mnist-vae")
@out_option("samples.png")
@click.option("-n", "--num", default=64, show_default=True, type=click.IntRange(1, 10_000),
              help="How many pictures.")  # fmt: skip
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(0),
              help="Spread of the codes; less is safer and duller.")  # fmt: skip
@click.option(
    "--label", "labels", multiple=True, metavar="NAME=K", help="A condition, e.g. digit=7."
)
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

    \b
    Example:
      ae image sample --model mnist-vae -n 64 -o samples.png
    """
    loaded = load_image_model(model, device)

    from ae_image.figures import grid_figure, save_figure

    pictures = loaded.sample(num, parse_labels(labels), seed=seed, temperature=temperature)
    side = int(num**0.5 + 0.999999)
    rows = [pictures[i : i + side] for i in range(0, num, side)]
    save_figure(grid_figure(rows), out)
    click.echo(f"{out}: {num} pictures of {model}, seed {seed}")
