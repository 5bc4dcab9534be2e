"""`ae image reconstruct`, `denoise` and `upscale`: pictures in, better pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ae_image.loading import (
    as_input,
    labels_of,
    load_image_model,
    need_condition,
    need_input,
    picture_file,
    read_pictures,
    sample_pictures,
)
from ae_toolkit import Failure, Misuse
from ae_toolkit.options import device_option, model_option, out_option, seed_option

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

    from ae_toolkit import Model

file_argument = click.argument("file", required=False, type=click.Path(path_type=Path))
files_argument = click.argument("files", nargs=-1, type=click.Path(path_type=Path))
figure_option = click.option(
    "--figure",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw before and after, side by side, into this file.",
)
invert_option = click.option(
    "--invert",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "yes", "no"]),
    help="Whether dark on light is turned round for the model, and back after it.",
)
photo_option = click.option(
    "--photo",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "yes", "no"]),
    help="Whether a photograph of a digit is inverted, cropped and centred first.",
)
label_option = click.option(
    "--label", "labels", multiple=True, metavar="[NAME=]K", help="A condition, e.g. digit=7."
)


@click.command("reconstruct")
@files_argument
@model_option("mnist-ae")
@out_option("reconstructions.png")
@photo_option
@label_option
@device_option
def reconstruct(
    files: tuple[Path, ...],
    model: str,
    out: Path,
    photo: str,
    labels: tuple[str, ...],
    device: str,
) -> None:
    """Draw FILES above their reconstructions, with the error; bundled digits if there are none.

    A photograph of a handwritten digit is brought into the form of the data first (inverted,
    cropped, centred), and the figure shows what was done to it.

    \b
    Examples:
      ae image reconstruct -o reconstructions.png
      ae image reconstruct three.png photo.jpg --model mnist-2d
    """
    loaded = load_image_model(model, device)

    from ae_image.figures import rows_figure, save_figure

    condition = labels_of(loaded, labels)
    need_condition(loaded, condition)
    if loaded.autoencoder.in_shape != loaded.autoencoder.shape:
        raise Misuse(f"model {model!r} enlarges what it is given: use 'ae image upscale'")
    pictures = read_pictures(files, loaded) if files else sample_pictures(loaded, 10)
    prepared = [as_input(loaded, picture, photo=photo) for picture in pictures]
    forms = tensors([picture for picture, _ in prepared], loaded)
    originals = [loaded.modality.from_tensor(y) for y in forms]
    made = loaded.reconstruct(originals, condition)
    errors = psnr(originals, made, loaded)

    if any(steps for _, steps in prepared):
        # A row for each file, from left to right what was done to it.
        names = ["your file", "light on dark", "cropped", "centred", "reconstruction"]
        rows = {}
        for i, (_, steps) in enumerate(prepared):
            between = list(steps.values())[:-1] or [originals[i]] * 2
            name = f"{i + 1}. {files[i].name}\n{errors[i]:.1f} dB"
            rows[name] = [pictures[i], *between, originals[i], made[i]]
        save_figure(rows_figure(rows, captions=names), out)
    else:
        captions = [f"{error:.1f} dB" for error in errors]
        rows = {"original": originals, "reconstruction": made}
        save_figure(rows_figure(rows, captions=captions), out)
    mean = sum(errors) / len(errors)
    click.echo(f"{out}: {len(made)} reconstructions by {model}, PSNR {mean:.1f} dB on average")


@click.command("denoise")
@file_argument
@model_option("mnist-denoise")
@out_option("clean.png")
@figure_option
@invert_option
@seed_option
@device_option
def denoise(
    file: Path | None,
    model: str,
    out: Path,
    figure: Path | None,
    invert: str,
    seed: int,
    device: str,
) -> None:
    """Take the noise off FILE, a picture of any size; without FILE, show it on bundled digits.

    The bundled model knows strokes of about the width of MNIST's, and noise N(0.5, 0.5); what it
    never saw, such as clothes, it draws with strokes. Colours go through it one by one.

    \b
    Examples:
      ae image denoise noisy.png -o clean.png
      ae image denoise noisy.png -o clean.png --figure before-and-after.png
      ae image denoise -o figure.png           ten digits: clean, noisy, denoised
    """
    loaded = load_image_model(model, device)
    need_input(loaded, "noise", "denoise")
    if file is None:
        _show_noise(loaded, model, out, seed)
        return
    after = _restored(loaded, file, out, figure, invert)
    click.echo(f"{out}: {file} denoised by {model}, {after.width}x{after.height} pixels")


@click.command("upscale")
@file_argument
@click.option("--model", help="Bundled name, run directory or hub id.  [default: by --factor]")
@click.option("--factor", default="2", show_default=True, type=click.Choice(["2", "4"]),
              help="How many times as large; chooses the bundled model.")  # fmt: skip
@out_option("big.png")
@figure_option
@invert_option
@device_option
def upscale(
    file: Path | None,
    model: str | None,
    factor: str,
    out: Path,
    figure: Path | None,
    invert: str,
    device: str,
) -> None:
    """Enlarge FILE, a picture of any size; without FILE, show it on bundled digits.

    Beside the result a figure is drawn, OUT with .figure before its ending, that has the bicubic
    enlargement beside the model's; --figure gives it another name.

    \b
    Examples:
      ae image upscale small.png -o big.png
      ae image upscale small.png --factor 4 -o big.png
      ae image upscale -o figure.png           ten digits: small, bicubic, the model's, original
    """
    model = model or {"2": "mnist-superres", "4": "mnist-superres-4x"}[factor]
    loaded = load_image_model(model, device)
    need_input(loaded, "downsample", "upscale")
    if file is None:
        _show_sizes(loaded, model, out)
        return
    figure = figure or out.with_suffix(f".figure{out.suffix}")
    after = _restored(loaded, file, out, figure, invert)
    click.echo(
        f"{out}: {file} enlarged by {model} to {after.width}x{after.height} pixels; "
        f"{figure}: bicubic beside it"
    )


def tensors(pictures: Sequence[Picture], model: Model) -> Tensor:
    """Pictures as prepared targets `(N, C, H, W)`, at the size that the model was trained on."""
    import torch

    modality = model.modality
    return modality.prepare(torch.stack([modality.to_tensor(picture).y for picture in pictures]))


def psnr(original: Sequence[Picture], made: Sequence[Picture], model: Model) -> list[float]:
    """The peak signal-to-noise ratio of each picture, in dB."""
    both = tensors(original, model), tensors(made, model)
    return model.modality.metrics(*both, None)["psnr"].tolist()


def _restored(model: Model, file: Path, out: Path, figure: Path | None, invert: Any) -> Picture:
    """Reads, restores and writes one picture, and draws it beside what it was."""
    from PIL import Image as Pictures

    from ae_image.modality import MAX_PIXELS, flatten
    from ae_image.pictures import has_colour, restore
    from ae_toolkit.files import writing

    picture_file(out, model.modality.suffixes)
    (before,) = read_pictures([file], model)
    factor = model.autoencoder.shape[1] // model.autoencoder.in_shape[1]
    if factor**2 * before.width * before.height > MAX_PIXELS:
        raise Failure(
            f"{file}: {factor} times as large it would have more than {MAX_PIXELS // 1_000_000} "
            f"million pixels; cut it into parts"
        )

    def run(picture: Picture) -> Picture:
        return model.reconstruct([picture], progress=True)[0]

    after = restore(run, before, channels=model.modality.shape[0], invert=invert)
    with writing(out) as temporary:
        model.modality.write([after], temporary)
    if figure is not None:
        from ae_image.figures import rows_figure, save_figure  # a second, where nothing is drawn

        plain = flatten(before, "RGB" if has_colour(before) else "L")
        pictures = {"before": plain, model.recipe.name: after}
        if after.size != before.size:
            bicubic = plain.resize(after.size, Pictures.Resampling.BICUBIC)
            pictures = {"small": plain, "bicubic": bicubic, model.recipe.name: after}
        row = {file.name: list(pictures.values())}
        save_figure(rows_figure(row, captions=list(pictures), cell=_cell(after)), figure)
    return after


def _cell(picture: Picture) -> tuple[int, int]:
    """A place in a figure for a picture of that shape: not too small to see, not too large."""
    share = min(max(224 / max(picture.size), 1), 1024 / max(picture.size))
    return max(round(share * picture.width), 1), max(round(share * picture.height), 1)


def _show_noise(model: Model, name: str, out: Path, seed: int) -> None:
    """Clean, noisy and denoised digits, one column each."""
    from ae_image.figures import rows_figure, save_figure

    clean = sample_pictures(model, 10)
    y = tensors(clean, model)
    x, _ = model.autoencoder.corruption(y, y, None, model.noise(seed, "show").step(0))
    noisy = [model.modality.from_tensor(row) for row in x]
    made = model.reconstruct(noisy)
    gains = zip(psnr(clean, noisy, model), psnr(clean, made, model), strict=True)
    captions = [f"{before:.0f} → {after:.0f} dB" for before, after in gains]
    rows = {"original": clean, "noisy": noisy, "denoised": made}
    save_figure(rows_figure(rows, captions=captions), out)
    click.echo(f"{out}: 10 digits denoised by {name}, seed {seed}")


def _show_sizes(model: Model, name: str, out: Path) -> None:
    """Small, bicubic, enlarged and original digits, one column each."""
    from PIL import Image as Pictures

    from ae_image.figures import rows_figure, save_figure

    clean = sample_pictures(model, 10)
    y = tensors(clean, model)
    x, _ = model.autoencoder.corruption(y, y, None, model.noise(0, "show").step(0))
    small = [model.modality.from_tensor(row) for row in x]
    bicubic = [p.resize(clean[0].size, Pictures.Resampling.BICUBIC) for p in small]
    made = model.reconstruct(small)
    gains = zip(psnr(clean, bicubic, model), psnr(clean, made, model), strict=True)
    captions = [f"{before:.0f} → {after:.0f} dB" for before, after in gains]
    rows = {"small": small, "bicubic": bicubic, "enlarged": made, "original": clean}
    save_figure(rows_figure(rows, captions=captions, cell=clean[0].size), out)
    click.echo(f"{out}: 10 digits enlarged by {name}")
