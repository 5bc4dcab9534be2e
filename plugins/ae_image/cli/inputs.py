"""What the commands share: models of pictures, pictures from files, labels as people write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ae_toolkit import UsageError
from ae_toolkit.cli.options import parse_labels

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

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


def read_pictures(paths: Iterable[Path], model: Model) -> list[Picture]:
    """Reads picture files; a file with several frames counts as its first."""
    from ae_toolkit.modality import each_item

    return [next(each_item(path, model.modality)) for path in paths]


def sample_pictures(model: Model, num: int) -> list[Picture]:
    """Pictures that ship with the package, one of each digit in turn."""
    import torch

    examples = sample_examples(model)
    digits = next(iter(examples.labels.values()), torch.zeros(len(examples), dtype=torch.long))
    turn = [int((digits[:i] == k).sum()) * 10 + int(k) for i, k in enumerate(digits)]
    order = sorted(range(len(examples)), key=lambda i: turn[i])[:num]
    shown = model.modality.prepare(examples.y[order])
    return [model.modality.from_tensor(y) for y in shown]


def sample_examples(model: Model) -> Examples:
    """The bundled test digits, in the model's form."""
    return data_of(model, "mnist-sample")


def data_of(model: Model, name: str, split: Split = "test") -> Examples:
    """A split of a data set, in the model's form."""
    from ae_toolkit.data.examples import from_option, load_data

    recipe = model.recipe.with_({"data": from_option(name).model_dump()})
    return load_data(recipe, model.modality, split)


def labels_of(model: Model, pairs: Sequence[str]) -> dict[str, float]:
    """Reads `--label digit=7`; for a model of one condition, `--label 7` will do."""
    own = model.recipe.condition
    if pairs and not own:
        raise UsageError(f"model {model.recipe.name!r} takes no label: it was trained without")
    if len(own) == 1:
        pairs = [pair if "=" in pair else f"{own[0]}={pair}" for pair in pairs]
    return parse_labels(pairs)


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


def need_condition(model: Model, labels: dict[str, Any]) -> None:
    """Raises UsageError where a conditional model was not told its condition."""
    for name in model.recipe.condition:
        if name not in labels:
            raise UsageError(
                f"model {model.recipe.name!r} must be told the {name}: add --label {name}=…"
            )


def need_input(model: Model, corruption: str, verb: str) -> None:
    """Raises UsageError where a model was not trained to undo a corruption of that kind."""
    if model.recipe.corruption.name != corruption:
        raise UsageError(
            f"model {model.recipe.name!r} was not trained to {verb}: its corruption is "
            f"{model.recipe.corruption.name!r}, not {corruption!r}"
        )
