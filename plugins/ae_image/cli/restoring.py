"""`ae image reconstruct`, `denoise` and `upscale`: pictures in, better pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ae_image.cli.inputs import (
    as_input,
    labels_of,
    load_image_model,
    need_condition,
    need_input,
    of_digits,
    sample_pictures,
)
from ae_toolkit import RunError, UsageError
from ae_toolkit.cli.options import (
    device_option,
    model_option,
    need_ending,
    out_option,
    report_skipped,
    seed_option,
)
from ae_toolkit.files import announce

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

    from ae_toolkit import Model
    from ae_toolkit.data.shards import Skipped

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
MAX_ON_SHEET = 100  #: pictures on one sheet of reconstructions
ROW_PICTURES = 10  #: of a sheet, where it has more than one pair of rows
SHOWN_SIZE = (512, 512)  #: pixels, at most, of a picture that waits to be drawn

files_argument = click.argument("files", nargs=-1, type=click.Path(path_type=Path, readable=False))
figure_option = click.option(
    "--figure",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw before and after, side by side, into this file; for one picture.",
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
    cropped, centred), and the figure shows what was done to it. The error is told twice: from what
    the model saw, and from your file, with the digit put back onto its paper. A picture without
    ink, with several digits or with ink at its border is spoken of. FILES may be folders; pictures
    that cannot be read are skipped and listed.

    \b
    Examples:
      ae image reconstruct -o reconstructions.png
      ae image reconstruct three.png photo.jpg --model mnist-2d
    """
    loaded = load_image_model(model, device)

    from ae_image.digits import BICUBIC_FILTER, NO_INK, decibels, in_frame
    from ae_image.figures import rows_figure, save_figure
    from ae_image.pixels import flatten
    from ae_toolkit.data.folder import list_files, read_each

    condition = labels_of(loaded, labels)
    need_condition(loaded, condition)
    if loaded.autoencoder.in_shape != loaded.autoencoder.shape:
        raise UsageError(f"model {model!r} enlarges what it is given: use 'ae image upscale'")
    skipped: list[Skipped] = []
    found = list_files(files, loaded.modality)
    if len(found) > MAX_ON_SHEET:
        raise UsageError(
            f"{len(found)} pictures are too many for one sheet, which holds {MAX_ON_SHEET}; "
            f"'ae reconstruct' writes each into a file"
        )
    names: list[str] = []
    forms: list[Tensor] = []
    pictures, prepared, given = [], [], []
    blank: set[int] = set()  # what has no ink comes back as nonsense, however few decibels from it
    for file, picture in read_each(found, partial(_read, model=loaded), skipped):
        ready, framed, doubts = as_input(loaded, picture, photo=photo, name=str(file))
        blank |= {len(names)} if NO_INK in doubts else set()
        forms += tensors([ready], loaded)
        given.append(in_frame(picture) if framed else _at_full_size(picture, loaded))
        shown = flatten(picture, "RGB")
        shown.thumbnail(SHOWN_SIZE)  # photographs at their own size would fill the memory
        pictures.append(shown)
        names.append(file.name)
        prepared.append(framed)
    if not files:
        given = pictures = sample_pictures(loaded, 10)
        forms, prepared = list(tensors(pictures, loaded)), [None] * 10
    originals = [loaded.modality.from_tensor(y) for y in forms]
    made = loaded.reconstruct(originals, condition)
    errors = psnr(originals, made, loaded)
    whole = [
        decibels(mine, framed.put_back(y) if framed else y.resize(mine.size, BICUBIC_FILTER))
        for mine, framed, y in zip(given, prepared, made, strict=True)
    ]

    if any(prepared):
        # A row for each file, from left to right what was done to it.
        captions = ["your file", "light on dark", "cropped", "centred", "reconstruction"]
        rows = {}
        for i, framed in enumerate(prepared):
            between = list(framed.steps.values())[:-1] if framed else [originals[i]] * 2
            told = f"{errors[i]:.1f} dB\n{whole[i]:.1f} dB from the file"
            name = f"{i + 1}. {names[i]}\n{'no ink' if i in blank else told}"
            rows[name] = [pictures[i], *between, originals[i], made[i]]
    elif len(made) > ROW_PICTURES:
        captions, rows = [], {}
        for i in range(0, len(made), ROW_PICTURES):
            end = min(i + ROW_PICTURES, len(made))
            rows[f"original {i + 1}–{end}"] = originals[i:end]
            rows[f"reconstruction {i + 1}–{end}"] = made[i:end]
    else:
        captions = ["no ink" if i in blank else f"{x:.1f} dB" for i, x in enumerate(errors)]
        rows = {"original": originals, "reconstruction": made}
    save_figure(rows_figure(rows, captions=captions), out)
    told = ""
    if inked := [i for i in range(len(made)) if i not in blank]:
        seen, yours = (sum(some[i] for i in inked) / len(inked) for some in (errors, whole))
        beside = f" from what the model saw, {yours:.1f} dB from your files" if files else ""
        told = f", PSNR {seen:.1f} dB{beside}"
    announce(f"{out}: {len(made)} reconstructions by {model}{told}")
    report_skipped(skipped, total=len(found))


@click.command("denoise")
@files_argument
@model_option("mnist-denoise")
@out_option("clean.png")
@figure_option
@invert_option
@seed_option
@device_option
def denoise(
    files: tuple[Path, ...],
    model: str,
    out: Path,
    figure: Path | None,
    invert: str,
    seed: int,
    device: str,
) -> None:
    """Take the noise off FILES, pictures of any size; without FILES, show it on bundled digits.

    Of several pictures, or of a folder's, -o names the folder for the results, named like the
    originals; those that cannot be read are skipped and listed.

    The bundled model knows strokes of about the width of MNIST's, and noise N(0.5, 0.5). What it
    never saw, such as photographs of the world, it ruins by strokes, and then says so. Colours go
    through it one by one.

    \b
    Examples:
      ae image denoise noisy.png -o clean.png
      ae image denoise noisy.png -o clean.png --figure before-and-after.png
      ae image denoise scans/ -o clean
      ae image denoise -o figure.png           ten digits: clean, noisy, denoised
    """
    loaded = load_image_model(model, device)
    need_input(loaded, "noise", "denoise")
    if files:
        _restore(loaded, files, out, figure, invert, done=f"denoised by {model}")
    else:
        _show_noise(loaded, model, out, seed)


@click.command("upscale")
@files_argument
@click.option("--model", help="Bundled name, run directory or hub id.  [default: by --factor]")
@click.option("--factor", default="2", show_default=True, type=click.Choice(["2", "4"]),
              help="How many times as large; chooses the bundled model.")  # fmt: skip
@out_option("big.png")
@figure_option
@invert_option
@device_option
def upscale(
    files: tuple[Path, ...],
    model: str | None,
    factor: str,
    out: Path,
    figure: Path | None,
    invert: str,
    device: str,
) -> None:
    """Enlarge FILES, pictures of any size; without FILES, show it on bundled digits.

    Beside the result a figure is drawn, OUT with the ending .figure.png, that has the bicubic
    enlargement beside the model's; --figure gives it another name. Of several pictures, or of a
    folder's, -o names the folder for the results, named like the originals; no figure is drawn, and
    those that cannot be read are skipped and listed. The bundled models know handwriting; a picture
    that they do not know, such as a photograph of the world, is better enlarged by bicubic
    interpolation, and then they say so.

    \b
    Examples:
      ae image upscale small.png -o big.png
      ae image upscale small.png --factor 4 -o big.png
      ae image upscale icons/ -o large
      ae image upscale -o figure.png           ten digits: small, bicubic, the model's, original
    """
    model = model or {"2": "mnist-superres", "4": "mnist-superres-4x"}[factor]
    loaded = load_image_model(model, device)
    need_input(loaded, "downsample", "upscale")
    if files:
        _restore(loaded, files, out, figure, invert, done=f"enlarged by {model}")
    else:
        _show_sizes(loaded, model, out)


def tensors(pictures: Sequence[Picture], model: Model) -> Tensor:
    """Pictures as prepared targets `(N, C, H, W)`, at the size that the model was trained on."""
    import torch

    modality = model.modality
    return modality.prepare(torch.stack([modality.to_tensor(picture).y for picture in pictures]))


def _at_full_size(picture: Picture, model: Model) -> Picture:
    """What the model's form keeps of a picture, at most 512 pixels a side but not smaller."""
    modality = model.modality
    channels, height, width = modality.shape
    scale = min(picture.height // height, picture.width // width, 512 // max(height, width))
    scale = max(scale, 1)
    y = modality.to_input(picture, (channels, scale * height, scale * width))
    return modality.from_tensor(modality.prepare(y[None])[0])


def psnr(original: Sequence[Picture], made: Sequence[Picture], model: Model) -> list[float]:
    """The peak signal-to-noise ratio of each picture, in dB."""
    both = tensors(original, model), tensors(made, model)
    return model.modality.metrics(*both, None)["psnr"].tolist()


def _restore(
    model: Model, files: Sequence[Path], out: Path, figure: Path | None, invert: Any, *, done: str
) -> None:
    """Restores and writes pictures one at a time; one alone is drawn beside what it was.

    Args:
        model: that denoises or enlarges.
        files: pictures and folders of them.
        out: a file for one picture, a folder for more.
        figure: a file for the drawing; None: beside an enlargement, and of nothing else.
        invert: as in `restore`.
        done: what the result is said to be.
    """
    from ae_toolkit.console import log
    from ae_toolkit.data.folder import list_files, read_each
    from ae_toolkit.files import check_output, safe_names, writing

    factor = model.autoencoder.shape[1] // model.autoencoder.in_shape[1]
    alone = len(files) == 1 and not files[0].is_dir()
    found = list(dict.fromkeys(list_files(files, model.modality)))
    skipped: list[Skipped] = []
    if alone:
        beside = None if figure or factor == 1 else out.with_suffix(".figure.png")
        need_ending(out, model.modality.suffixes)
        need_ending(figure, FIGURE_SUFFIXES)
        places = [out]
    else:
        beside, out = None, _folder(out, figure, model)
        places = [out / f"{name}.png" for name in safe_names([file.stem for file in found])]
    for place in [*places, *([beside] if beside else [])]:
        check_output(place, named=alone and place is not beside)

    place_of = dict(zip(found, places, strict=True))
    for file, before in read_each(found, partial(_read, model=model, factor=factor), skipped):
        after, is_known = _restored(model, before, invert)
        if not is_known:
            log(
                f"{file}: does not look like what {model.recipe.name!r} was trained on "
                f"({model.recipe.data.name}): its result shows things that are not there"
            )
        with writing(place_of[file], named=alone) as temporary:
            model.modality.write([after], temporary)
    if alone:
        if drawn := figure or beside:
            _draw(before, after, model.recipe.name, file.name, drawn, named=drawn is figure)
        added = f"; {drawn}: before and after" if drawn else ""
        announce(f"{out}: {file} {done}, {after.width}x{after.height} pixels{added}")
    else:
        announce(f"{out}: {len(found) - len(skipped)} pictures {done}")
    report_skipped(skipped, total=len(found))


def _restored(model: Model, picture: Picture, invert: Any) -> tuple[Picture, bool]:
    """A restored picture, and whether it accounts for what the model was given.

    Where it does not, and whether it is dark on light was guessed, a small one is tried both ways.
    """
    from ae_image.digits import is_dark_on_light, is_explained, restore
    from ae_toolkit.inference.tiling import TILE_SIZE

    def attempt(way: Any) -> tuple[Picture, bool]:
        explained: list[bool] = []

        def run(given: Picture) -> Picture:
            made = model.reconstruct([given], progress=True)[0]
            explained.append(is_explained(given, made))
            return made

        return restore(run, picture, channels=model.modality.shape[0], invert=way), all(explained)

    if invert != "auto" or not of_digits(model):
        return attempt(invert)
    ways = ["yes", "no"] if is_dark_on_light(picture) else ["no", "yes"]
    first = attempt(ways[0])
    if first[1] or max(picture.size) > TILE_SIZE:
        return first
    second = attempt(ways[1])
    return second if second[1] else first


def _folder(out: Path, figure: Path | None, model: Model) -> Path:
    """The folder for several results: OUT, or its default without the ending.

    Raises:
        UsageError: OUT or a figure is named as for one picture.
    """
    if figure is not None:
        raise UsageError("--figure draws one picture: leave it out, or name one file")
    if out.suffix.lower() not in model.modality.suffixes:
        return out
    if click.get_current_context().get_parameter_source("out") is ParameterSource.DEFAULT:
        return out.with_suffix("")
    raise UsageError(f"{out}: with several pictures, -o names a folder for the results")


def _read(file: Path, *, model: Model, factor: int = 1) -> Picture:
    """Reads the first picture of a file, in `RGB`, or in `L` where it has no colour.

    Raises:
        RunError: it cannot be read, or so many times as large would be too large.
    """
    from ae_image.digits import has_colour
    from ae_image.modality import MAX_PIXELS
    from ae_image.pixels import flatten
    from ae_toolkit.modality import each_item

    picture = next(each_item(file, model.modality))
    if factor**2 * picture.width * picture.height > MAX_PIXELS:
        raise RunError(
            f"{file}: {factor} times as large it would have more than {MAX_PIXELS // 1_000_000} "
            f"million pixels; cut it into parts"
        )
    return flatten(picture, "RGB" if has_colour(picture) else "L")


def _draw(
    before: Picture, after: Picture, name: str, title: str, path: Path, *, named: bool
) -> None:
    """Draws a result beside what it was, and an enlargement beside the bicubic one too."""
    from PIL import Image as Pictures

    from ae_image.figures import rows_figure, save_figure  # a second, where nothing is drawn

    pictures = {"before": before, name: after}
    if after.size != before.size:
        bicubic = before.resize(after.size, Pictures.Resampling.BICUBIC)
        pictures = {"small": before, "bicubic": bicubic, name: after}
    row = {title: list(pictures.values())}
    figure = rows_figure(row, captions=list(pictures), cell=_cell(after))
    save_figure(figure, path, named=named)


def _cell(picture: Picture) -> tuple[int, int]:
    """A place in a figure for a picture of that shape: not too small to see, not too large."""
    share = min(max(224 / max(picture.size), 1), 1024 / max(picture.size))
    return max(round(share * picture.width), 1), max(round(share * picture.height), 1)


def _show_noise(model: Model, name: str, out: Path, seed: int) -> None:
    """Clean, noisy and denoised digits, one column each."""
    from ae_image.figures import rows_figure, save_figure

    clean = sample_pictures(model, 10)
    y = tensors(clean, model)
    x, _ = model.autoencoder.corruption(y, y, None, model.noise_source(seed, "show").step(0))
    noisy = [model.modality.from_tensor(row) for row in x]
    made = model.reconstruct(noisy)
    gains = zip(psnr(clean, noisy, model), psnr(clean, made, model), strict=True)
    captions = [f"{before:.0f} → {after:.0f} dB" for before, after in gains]
    rows = {"original": clean, "noisy": noisy, "denoised": made}
    save_figure(rows_figure(rows, captions=captions), out)
    announce(f"{out}: 10 digits denoised by {name}, seed {seed}")


def _show_sizes(model: Model, name: str, out: Path) -> None:
    """Small, bicubic, enlarged and original digits, one column each."""
    from PIL import Image as Pictures

    from ae_image.figures import rows_figure, save_figure

    clean = sample_pictures(model, 10)
    y = tensors(clean, model)
    x, _ = model.autoencoder.corruption(y, y, None, model.noise_source(0, "show").step(0))
    small = [model.modality.from_tensor(row) for row in x]
    bicubic = [p.resize(clean[0].size, Pictures.Resampling.BICUBIC) for p in small]
    made = model.reconstruct(small)
    gains = zip(psnr(clean, bicubic, model), psnr(clean, made, model), strict=True)
    captions = [f"{before:.0f} → {after:.0f} dB" for before, after in gains]
    rows = {"small": small, "bicubic": bicubic, "enlarged": made, "original": clean}
    save_figure(rows_figure(rows, captions=captions, cell=clean[0].size), out)
    announce(f"{out}: 10 digits enlarged by {name}")
