"""`ae image reconstruct`: pictures above what a model makes of them, with the error in decibels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ae_image.cli.inputs import (
    as_input,
    labels_of,
    load_image_model,
    psnr,
    read_plain,
    sample_pictures,
    to_pictures,
    to_tensors,
)
from ae_image.cli.options import files_argument, label_option, photo_option
from ae_toolkit import UsageError
from ae_toolkit.cli.options import device_option, model_option, out_option, report_skipped
from ae_toolkit.files import announce

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from ae_image.digits import Framed
    from ae_toolkit import Model
    from ae_toolkit.data.shards import Skipped

MAX_ON_SHEET = 100  #: pictures on one sheet of reconstructions
ROW_PICTURES = 10  #: of a sheet, where it has more than one pair of rows
SHOWN_SIZE = (512, 512)  #: pixels, at most, of a picture that waits to be drawn


class Original(NamedTuple):
    """A picture that is reconstructed.

    Attributes:
        name: of its file.
        shown: as it is drawn.
        whole: at its own size, which the error from the file is measured at.
        form: what the model is given.
        framed: how it was brought into that form; None: it was left as it was.
        is_blank: there is no ink in it, and what has none comes back as nonsense, however few
            decibels from it.
    """

    name: str
    shown: Picture
    whole: Picture
    form: Picture
    framed: Framed | None = None
    is_blank: bool = False

    def error_of(self, made: Picture) -> float:
        """How far a reconstruction, put back where the picture was, is from the file, in dB."""
        from ae_image.digits import BICUBIC_FILTER, decibels

        put_back = (
            self.framed.put_back(made)
            if self.framed
            else made.resize(self.whole.size, BICUBIC_FILTER)
        )
        return decibels(self.whole, put_back)


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

    from ae_image.figures import rows_figure, save_figure
    from ae_toolkit.data.folder import list_files, read_each

    condition = labels_of(loaded, labels)
    if loaded.autoencoder.in_shape != loaded.autoencoder.shape:
        raise UsageError(f"model {model!r} enlarges what it is given: use 'ae image upscale'")
    skipped: list[Skipped] = []
    found = list_files(files, loaded.modality)
    if len(found) > MAX_ON_SHEET:
        raise UsageError(
            f"{len(found)} pictures are too many for one sheet, which holds {MAX_ON_SHEET}; "
            f"'ae reconstruct' writes each into a file"
        )
    reading = read_each(found, partial(read_plain, model=loaded), skipped)
    originals = [_original(file, picture, loaded, photo) for file, picture in reading]
    originals = originals or [Original("", p, p, p) for p in sample_pictures(loaded, 10)]
    forms = [original.form for original in originals]
    made = loaded.reconstruct(forms, condition)
    seen = psnr(forms, made, loaded)
    whole = [original.error_of(y) for original, y in zip(originals, made, strict=True)]
    rows, captions = _sheet(originals, made, seen, whole)
    save_figure(rows_figure(rows, captions=captions), out)
    told = ""
    if inked := [i for i, original in enumerate(originals) if not original.is_blank]:
        near, far = (sum(some[i] for i in inked) / len(inked) for some in (seen, whole))
        beside = f" from what the model saw, {far:.1f} dB from your files" if files else ""
        told = f", PSNR {near:.1f} dB{beside}"
    announce(f"{out}: {len(made)} reconstructions by {model}{told}")
    report_skipped(skipped, total=len(found))


def _original(file: Path, picture: Picture, model: Model, photo: str) -> Original:
    from ae_image.digits import NO_INK, in_frame
    from ae_image.pixels import flatten

    ready, framed, doubts = as_input(model, picture, photo=photo, name=str(file))
    (form,) = to_pictures(to_tensors([ready], model), model)
    whole = in_frame(picture) if framed else _at_full_size(picture, model)
    shown = flatten(picture, "RGB")
    shown.thumbnail(SHOWN_SIZE)  # photographs at their own size would fill the memory
    return Original(file.name, shown, whole, form, framed, NO_INK in doubts)


def _at_full_size(picture: Picture, model: Model) -> Picture:
    """What the model's form keeps of a picture, at most 512 pixels a side but not smaller."""
    modality = model.modality
    channels, height, width = modality.shape
    scale = min(picture.height // height, picture.width // width, 512 // max(height, width))
    scale = max(scale, 1)
    y = modality.to_input(picture, (channels, scale * height, scale * width))
    return to_pictures(modality.prepare(y[None]), model)[0]


def _sheet(
    originals: Sequence[Original],
    made: Sequence[Picture],
    seen: Sequence[float],
    whole: Sequence[float],
) -> tuple[dict[str, Sequence[Picture]], list[str]]:
    """The rows and captions of a figure; `seen` and `whole` are errors in dB.

    Where a picture was brought into form, there is a row for each file: from left to right what was
    done to it.
    """
    forms = [original.form for original in originals]
    rows: dict[str, Sequence[Picture]] = {}
    if any(original.framed for original in originals):
        for i, (_, shown, _, form, framed, is_blank) in enumerate(originals):
            between = list(framed.steps.values())[:-1] if framed else [form] * 2
            told = f"{seen[i]:.1f} dB\n{whole[i]:.1f} dB from the file"
            name = f"{i + 1}. {originals[i].name}\n{'no ink' if is_blank else told}"
            rows[name] = [shown, *between, form, made[i]]
        return rows, ["your file", "light on dark", "cropped", "centred", "reconstruction"]
    if len(made) > ROW_PICTURES:
        for i in range(0, len(made), ROW_PICTURES):
            end = min(i + ROW_PICTURES, len(made))
            rows[f"original {i + 1}–{end}"] = forms[i:end]
            rows[f"reconstruction {i + 1}–{end}"] = made[i:end]
        return rows, []
    captions = [
        "no ink" if original.is_blank else f"{error:.1f} dB"
        for original, error in zip(originals, seen, strict=True)
    ]
    return {"original": forms, "reconstruction": made}, captions
