"""A tiny autoencoder and its data, to put a part under test into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ae_toolkit.contracts import Batch, Example, Shape
from ae_toolkit.errors import RunError
from ae_toolkit.modality import Modality
from ae_toolkit.recipe import Recipe

BATCH_SIZE = 4


class Tensors(Modality):
    """The plainest data type: `.npy` files of one shape. For tests, and for a first try.

    Args:
        shape: of every file.
        num_classes: of elements; 0: real numbers.
        labels: name -> number of classes.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".npy",)

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (1, 8, 8),
        num_classes: int = 0,
        labels: dict[str, int] | None = None,
    ):
        self.shape, self.num_classes, self.labels = tuple(shape), num_classes, labels or {}

    def read(self, path: Path) -> Iterator[Tensor]:
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"{path}: is not a .npy file ({error})") from error
        if array.shape != self.shape:
            raise RunError(f"{path}: has shape {array.shape}, not {self.shape}")
        yield torch.from_numpy(array)

    def to_tensor(self, item: Tensor) -> Example:
        return Example(item)

    def from_tensor(
        self, y: Tensor, *, like: Any = None, labels: Mapping[str, float] | None = None
    ) -> Tensor:
        return y

    def write(self, items: Sequence[Tensor], path: Path) -> None:
        np.save(path, np.concatenate([item.numpy() for item in items]))


def tiny_recipe(
    *,
    shape: Shape = (1, 8, 8),
    num_classes: int = 0,
    condition: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe of small dense parts for `Tensors`, to put a part under test into.

    Args:
        shape: of the data.
        num_classes: of elements; 0: real numbers in [0, 1].
        condition: whether parts are conditioned on a class (of 3) and a real value.
        changes: as `Recipe.with_` takes them.
    """
    labels = {"kind": 3, "level": 0}
    recipe = Recipe.of(
        {
            "name": "tiny",
            "data": {"name": "tensors"},
            "modality": {
                "name": "tensors",
                "shape": shape,
                "num_classes": num_classes,
                "labels": labels,
            },
            "condition": [*labels] if condition else [],
            "encoder": {"name": "mlp", "hidden": [16]},
            "bottleneck": {"name": "gaussian", "z_dim": 4},
            "decoder": {"name": "mlp", "hidden": [16]},
            "likelihood": {"name": "categorical" if num_classes else "cross-entropy"},
            "train": {"epochs": 1, "batch_size": 8, "lr": 1e-3},
        }
    )
    return recipe.with_(changes or {})


def tiny_batch(modality: Modality, *, num: int = BATCH_SIZE, seed: int = 0) -> Batch:
    """Random prepared targets: classes, or binary values, which every likelihood supports."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(modality.num_classes or 2, (num, *modality.shape), generator=generator)
    labels = {
        name: torch.randint(classes, (num,), generator=generator)
        if classes
        else torch.rand(num, generator=generator)
        for name, classes in modality.labels.items()
    }
    return Batch(y if modality.num_classes else y.float(), None, labels)
