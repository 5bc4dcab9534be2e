"""`ae image perturb` and `maps`: what one picture's code is like."""

from __future__ import annotations

from pathlib import Path

import click

from ae_image.cli.inputs import labels_of, load_image_model, read_digits, to_pictures, to_tensors
from ae_image.cli.latent import test_examples
from ae_image.cli.options import label_option, photo_option
from ae_toolkit import UsageError
from ae_toolkit.cli.options import (
    FiniteRange,
    device_option,
    model_option,
    out_option,
    seed_option,
)
from ae_toolkit.files import announce

NUM_SPREAD = 500  #: codes of the test split, by whose spread noise is measured

file_argument = click.argument("file", type=click.Path(path_type=Path))


@click.command("perturb")
@file_argument
@model_option("mnist-vae")
@out_option("perturbed.png")
@click.option("--sigma", "sigmas", multiple=True, type=FiniteRange(min=0), metavar="S",
              help="Noise, in standard deviations of each code number over test data; give it "
                   "again for another row.  [default: 0.5, 1, 1.5]")  # fmt: skip
@click.option("-n", "--num", default=8, show_default=True, type=click.IntRange(1, 64),
              help="Pictures in each row.")  # fmt: skip
@photo_option
@label_option
@seed_option
@device_option
def perturb(
    file: Path,
    model: str,
    out: Path,
    sigmas: tuple[float, ...],
    num: int,
    photo: str,
    labels: tuple[str, ...],
    seed: int,
    device: str,
) -> None:
    """Add noise to the code of FILE and draw what becomes of it.

    A VAE's pictures turn into others like them; those of a plain autoencoder fall to pieces.

    \b
    Examples:
      ae image perturb three.png -o perturbed.png
      ae image perturb three.png --model mnist-ae --sigma 0.5
    """
    loaded = load_image_model(model, device)

    import torch

    from ae_image.figures import rows_figure, save_figure

    condition = labels_of(loaded, labels)
    loaded.need_real_codes()
    pictures = read_digits([file], loaded, photo=photo)
    code = loaded.encode(pictures, condition).cpu()
    examples = test_examples(loaded)
    spread = loaded.encode_examples(examples.select(range(min(NUM_SPREAD, len(examples))))).std(0)
    draws = torch.randn(num, code.shape[1], generator=torch.Generator().manual_seed(seed))
    original = to_pictures(to_tensors(pictures, loaded), loaded)
    rows = {"as it is, as its code": [*original, *loaded.decode(code, condition)]}
    for sigma in sigmas or (0.5, 1.0, 1.5):
        rows[f"{sigma:g}σ"] = loaded.decode(code + sigma * spread.cpu() * draws, condition)
    save_figure(rows_figure(rows), out)
    announce(f"{out}: {file}, its code by {model}, and that with noise, seed {seed}")


@click.command("maps")
@file_argument
@model_option("mnist-ae")
@out_option("maps.png")
@photo_option
@label_option
@device_option
def maps(
    file: Path, model: str, out: Path, photo: str, labels: tuple[str, ...], device: str
) -> None:
    """Draw the code of FILE as the feature maps that it consists of, beside the picture.

    Of a code of integers, each map shows which value of the codebook stands where.

    \b
    Example:
      ae image maps three.png -o maps.png
    """
    loaded = load_image_model(model, device)

    from ae_image.figures import maps_figure, save_figure

    if all(len(shape) < 3 for shape in loaded.z_shapes):
        raise UsageError(
            f"the code of {model} is {loaded.z_dim} numbers without positions, so it has no maps: "
            f"choose a model with a spatial code, such as mnist-ae"
        )
    condition = labels_of(loaded, labels)
    pictures = read_digits([file], loaded, photo=photo)
    (original,) = to_pictures(to_tensors(pictures, loaded), loaded)
    code = loaded.encode(pictures, condition)
    (made,) = loaded.decode(code, condition)
    levels = [level[0].cpu() for level in loaded.unflatten(code) if level.dim() == 4]
    save_figure(
        maps_figure(original, levels, made, num_classes=loaded.autoencoder.num_classes), out
    )
    shapes = " and ".join("x".join(map(str, level.shape)) for level in levels)
    announce(f"{out}: {file}, its code of {shapes}, and what {model} makes of it")
