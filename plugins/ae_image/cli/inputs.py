"""What the commands share: models of pictures, pictures from files, labels as people write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ae_toolkit import RunError, UsageError
from ae_toolkit.cli.options import parse_labels

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

    from ae_image.digits import Framed
    from ae_toolkit import Examples, Model
    from ae_toolkit.data.examples import Split


def load_image_model(name: str, device: str) -> Model:
    """Loads a model and makes sure that it is one of pictures."""
    from ae_image.modality import Image
    from ae_toolkit import load

    model = load(name, device=device)
    if not isinstance(model.modality, Image):
        raise UsageError(
            f"model {name!r} is of data type {model.recipe.modality.name!r}, and 'ae image' needs "
            f"one of pictures"
        )
    return model


def need_corruption(model: Model, corruption: str, verb: str) -> None:
    """Raises UsageError where a model was not trained to undo a corruption of that kind."""
    if model.recipe.corruption.name != corruption:
        raise UsageError(
            f"model {model.recipe.name!r} was not trained to {verb}: its corruption is "
            f"{model.recipe.corruption.name!r}, not {corruption!r}"
        )


def labels_of(model: Model, pairs: Sequence[str], *, needed: bool = True) -> dict[str, float]:
    """Reads `--label digit=7`; for a model of one condition, `--label 7` will do.

    Raises:
        UsageError: the model takes no label, or one that is needed is missing.
    """
    names = model.recipe.condition
    if pairs and not names:
        raise UsageError(f"model {model.recipe.name!r} takes no label: it was trained without")
    if len(names) == 1:
        pairs = [pair if "=" in pair else f"{names[0]}={pair}" for pair in pairs]
    labels = parse_labels(pairs)
    for name in names if needed else ():
        if name not in labels:
            raise UsageError(
                f"model {model.recipe.name!r} must be told the {name}: add --label {name}=…"
            )
    return labels


def data_of(model: Model, name: str, split: Split = "test") -> Examples:
    """A split of a data set, in the model's form."""
    from ae_toolkit.data.examples import from_option, load_data

    recipe = model.recipe.with_({"data": from_option(name).model_dump()})
    return load_data(recipe, model.modality, split)


def sample_pictures(model: Model, num: int) -> list[Picture]:
    """Pictures that ship with the package, in the model's form, one of each digit in turn."""
    import torch

    examples = data_of(model, "mnist-sample")
    digits = next(iter(examples.labels.values()), torch.zeros(len(examples), dtype=torch.long))
    turn = (digits[:, None] == digits).tril(-1).sum(1)  # how many of the same came before
    order = (10 * turn + digits).argsort()[:num]
    return to_pictures(model.modality.prepare(examples.y[order]), model)


def read_pictures(paths: Iterable[Path], model: Model) -> list[Picture]:
    """Reads picture files; a file with several frames counts as its first."""
    from ae_toolkit.modality import each_item

    return [next(each_item(path, model.modality)) for path in paths]


def read_digits(paths: Sequence[Path], model: Model, *, photo: str) -> list[Picture]:
    """Reads picture files, and brings them into the model's form as `as_input` does."""
    found = zip(paths, read_pictures(paths, model), strict=True)
    return [as_input(model, picture, photo=photo, name=str(path))[0] for path, picture in found]


def read_plain(path: Path, *, model: Model, factor: int = 1) -> Picture:
    """Reads the first picture of a file, in `RGB`, or in `L` where it has no colour.

    Raises:
        RunError: it cannot be read, or so many times as large would be too large.
    """
    from ae_image.digits import has_colour
    from ae_image.modality import MAX_PIXELS
    from ae_image.pixels import flatten

    (picture,) = read_pictures([path], model)
    if factor**2 * picture.width * picture.height > MAX_PIXELS:
        raise RunError(
            f"{path}: {factor} times as large it would have more than {MAX_PIXELS // 1_000_000} "
            f"million pixels; cut it into parts"
        )
    return flatten(picture, "RGB" if has_colour(picture) else "L")


def as_input(
    model: Model, picture: Picture, *, photo: str, name: str
) -> tuple[Picture, Framed | None, list[str]]:
    """A picture in the model's form, how it was brought there, and what makes it no digit.

    What makes it none is said on standard error too. How is None where it was left as it was.

    Args:
        model: of digits, if anything is to be done.
        picture: of a user's.
        photo: `auto` treats a picture that is not in the data's form already, `yes` any, `no` none.
        name: of the picture.
    """
    from ae_image.digits import as_digit, doubts_of_form, is_form
    from ae_toolkit.console import log

    if photo == "no" or (photo == "auto" and not of_digits(model)) or model.modality.shape[0] != 1:
        return picture, None, []
    framed = None if photo == "auto" and is_form(picture) else as_digit(picture)
    doubts = framed.doubts if framed else doubts_of_form(picture)
    for doubt in doubts:
        log(f"{name}: {doubt}")
    return framed.steps["centred"] if framed else picture, framed, doubts


def of_digits(model: Model) -> bool:
    """Whether a model's pictures are framed as MNIST's are."""
    return "digit" in model.modality.labels and tuple(model.modality.shape[1:]) == (28, 28)


def to_tensors(pictures: Sequence[Picture], model: Model) -> Tensor:
    """Pictures as prepared targets `(N, C, H, W)`, at the size that the model was trained on."""
    import torch

    modality = model.modality
    return modality.prepare(torch.stack([modality.to_tensor(picture).y for picture in pictures]))


def to_pictures(y: Tensor, model: Model) -> list[Picture]:
    """Prepared targets `(N, C, H, W)` as pictures."""
    return [model.modality.from_tensor(row) for row in y]


def psnr(original: Sequence[Picture], made: Sequence[Picture], model: Model) -> list[float]:
    """The peak signal-to-noise ratio of each picture, in dB."""
    both = to_tensors(original, model), to_tensors(made, model)
    return model.modality.metrics(*both, None)["psnr"].tolist()
