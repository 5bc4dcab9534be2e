"""`ae image denoise` and `upscale`: pictures in, better pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ae_image.cli.inputs import (
    load_image_model,
    need_corruption,
    of_digits,
    psnr,
    read_plain,
    sample_pictures,
    to_pictures,
    to_tensors,
)
from ae_image.cli.options import figure_option, files_argument, invert_option
from ae_toolkit import UsageError
from ae_toolkit.cli.options import (
    FIGURE_ENDINGS,
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

    from ae_toolkit import Model
    from ae_toolkit.data.shards import Skipped


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
    need_corruption(loaded, "noise", "denoise")
    if files:
        _restore(loaded, files, out, figure, invert, done=f"denoised by {model}")
    else:
        _show(loaded, out, seed, done=f"denoised by {model}, seed {seed}")


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
    need_corruption(loaded, "downsample", "upscale")
    if files:
        _restore(loaded, files, out, figure, invert, done=f"enlarged by {model}")
    else:
        _show(loaded, out, seed=0, done=f"enlarged by {model}")


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
        need_ending(figure, FIGURE_ENDINGS)
        places = [out]
    else:
        beside, out = None, _folder(out, figure, model)
        places = [out / f"{name}.png" for name in safe_names([file.stem for file in found])]
    for place in [*places, *([beside] if beside else [])]:
        check_output(place, named=alone and place is not beside)

    place_of = dict(zip(found, places, strict=True))
    for file, before in read_each(found, partial(read_plain, model=model, factor=factor), skipped):
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

    explained: list[bool] = []

    def run(given: Picture) -> Picture:
        made = model.reconstruct([given], progress=True)[0]
        explained.append(is_explained(given, made))
        return made

    ways = [invert]
    if invert == "auto" and of_digits(model):
        ways = ["yes", "no"] if is_dark_on_light(picture) else ["no", "yes"]
        ways = ways if max(picture.size) <= TILE_SIZE else ways[:1]
    tried: list[Picture] = []
    for way in ways:
        explained.clear()
        tried.append(restore(run, picture, channels=model.modality.shape[0], invert=way))
        if all(explained):
            return tried[-1], True
    return tried[0], False


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


def _draw(
    before: Picture, after: Picture, name: str, title: str, path: Path, *, named: bool
) -> None:
    """Draws a result beside what it was, and an enlargement beside the bicubic one too."""
    from ae_image.digits import BICUBIC_FILTER
    from ae_image.figures import rows_figure, save_figure  # a second, where nothing is drawn

    pictures = {"before": before}
    if after.size != before.size:
        pictures = {"small": before, "bicubic": before.resize(after.size, BICUBIC_FILTER)}
    pictures[name] = after
    share = min(max(224 / max(after.size), 1), 1024 / max(after.size))  # neither small nor large
    cell = max(round(share * after.width), 1), max(round(share * after.height), 1)
    figure = rows_figure({title: list(pictures.values())}, captions=list(pictures), cell=cell)
    save_figure(figure, path, named=named)


def _show(model: Model, out: Path, seed: int, *, done: str) -> None:
    """Draws ten digits, one a column: what the model is given of them, and what it makes of it."""
    from ae_image.digits import BICUBIC_FILTER
    from ae_image.figures import rows_figure, save_figure

    clean = sample_pictures(model, 10)
    y = to_tensors(clean, model)
    x, _ = model.autoencoder.corruption(y, y, None, model.noise_source(seed, "show").step(0))
    given = to_pictures(x, model)
    made = model.reconstruct(given)
    if x.shape == y.shape:
        simple = given
        rows = {"original": clean, "noisy": given, "denoised": made}
    else:
        simple = [picture.resize(clean[0].size, BICUBIC_FILTER) for picture in given]
        rows = {"small": given, "bicubic": simple, "enlarged": made, "original": clean}
    gains = zip(psnr(clean, simple, model), psnr(clean, made, model), strict=True)
    captions = [f"{before:.0f} → {after:.0f} dB" for before, after in gains]
    save_figure(rows_figure(rows, captions=captions, cell=clean[0].size), out)
    announce(f"{out}: 10 digits {done}")
