"""Files -> tensors -> batches on the device, split by group.

A dataset is a function `(*, modality, split, …own arguments) -> Examples`; `files` is the one that
works on every data type. Small data lives on the device in its storage dtype, where a batch is an
index operation.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ae_toolkit.contracts import Batch, Example
from ae_toolkit.errors import Fault, Misuse, blaming, choose
from ae_toolkit.modality import Modality, describe
from ae_toolkit.noise import seed_of
from ae_toolkit.recipe import Part, Recipe

Split = Literal["train", "test"]

ON_DEVICE = 2 << 30  #: bytes up to which a data set is kept on the device


@dataclass(frozen=True)
class Examples:
    """A data set in columns.

    Attributes:
        y: `(N, *shape)` in the storage dtype.
        mask: `(N, T)` bool, or None where every example fills its shape.
        labels: `(N,)` each.
        groups: the split key of each example.
    """

    y: Tensor
    mask: Tensor | None
    labels: Mapping[str, Tensor]
    groups: list[str]

    def __len__(self) -> int:
        return self.y.shape[0]

    def at(self, index: Tensor | range) -> Batch:
        """The examples at `index`, `(B,)`, wherever the columns live."""
        if isinstance(index, range):
            index = torch.arange(index.start, index.stop)
        index = index.to(self.y.device)
        return Batch(
            self.y[index],
            None if self.mask is None else self.mask[index],
            {name: column[index] for name, column in self.labels.items()},
        )

    def select(self, chosen: Iterable[int]) -> Examples:
        """A smaller data set."""
        rows = list(chosen)
        batch = self.at(torch.tensor(rows, dtype=torch.long))
        return Examples(*batch, [self.groups[i] for i in rows])

    def to(self, device: torch.device) -> Examples:
        """Moves the columns to a device, as far as they fit."""
        if self.y.numel() * self.y.element_size() > ON_DEVICE:
            return self
        return replace(
            self,
            y=self.y.to(device),
            mask=None if self.mask is None else self.mask.to(device),
            labels={name: column.to(device) for name, column in self.labels.items()},
        )

    @classmethod
    def stack(cls, examples: Iterable[Example], *, length: int) -> Examples:
        """Gathers single examples, one at least.

        Args:
            examples: of one modality.
            length: of the first axis; shorter examples are padded at their end and masked.
        """
        rows = list(examples)
        lengths = [row.y.shape[0] for row in rows]
        mask = None
        if min(lengths) < length:
            mask = torch.arange(length) < torch.tensor(lengths)[:, None]
        y = pad_sequence([row.y for row in rows], batch_first=True)
        if y.shape[1] < length:
            y = torch.cat([y, y.new_zeros(len(y), length - y.shape[1], *y.shape[2:])], 1)
        labels = {
            name: torch.tensor(np.array([row.labels[name] for row in rows]))
            for name in rows[0].labels
        }
        return cls(y, mask, labels, [row.group for row in rows])


def load_data(recipe: Recipe, modality: Modality, split: Split) -> Examples:
    """Loads the recipe's data set.

    Raises:
        Misuse: there is no such data set, or it does not fit the data type.
        Failure: it cannot be read, or gives no examples.
    """
    examples = recipe.make("dataset", modality=modality, split=split)
    whose = f"dataset {recipe.data.name!r} of {recipe.origin('dataset')}"
    if not isinstance(examples, Examples) or not isinstance(examples.y, Tensor):
        what = examples.y if isinstance(examples, Examples) else examples
        raise Fault(f"{whose} must give Examples of a tensor, not {type(what).__name__}")
    if not len(examples):
        raise Fault(f"{whose} gives no examples of the {split} split")
    if examples.groups is None or len(examples.groups) != len(examples):
        raise Fault(f"{whose} must give a group for each of its {len(examples)} examples")
    if tuple(examples.y.shape[1:]) != tuple(modality.shape):
        raise Misuse(
            f"dataset {recipe.data.name!r} has examples of shape {tuple(examples.y.shape[1:])}, "
            f"but modality {recipe.modality.name!r} is set to {tuple(modality.shape)}"
        )
    some = examples.y[:2]
    with blaming(f"{describe(modality)} cannot prepare it"):
        prepared = modality.prepare(some)
    if not isinstance(prepared, Tensor) or prepared.shape != some.shape:
        raise Fault(
            f"{describe(modality)} must prepare a tensor of the shape that it is given, "
            f"{tuple(some.shape)}"
        )
    for name in recipe.condition:
        if name not in examples.labels:
            raise Misuse(
                f"recipe: condition {name!r} is no label of data set {recipe.data.name!r}: "
                f"{choose(name, examples.labels)}"
            )
    return examples


def from_option(data: str) -> Part:
    """Reads `--data`: the name of a data set, or the path of a file or folder."""
    from ae_toolkit.registry import datasets

    if data.rpartition(":")[2] in datasets.names() and data != "files":
        return Part(name=data)
    if Path(data).exists():
        return Part.model_validate({"name": "files", "path": os.path.abspath(data)})
    raise Misuse(
        f"--data {data!r} is neither a file or folder nor one of: {', '.join(datasets.names())}"
    )


def hold_out(examples: Examples, share: float, *, seed: int) -> tuple[Examples, Examples]:
    """Splits off a share by a seeded hash of the group: adding data moves nobody across."""
    if not share:
        return examples, examples.select([])
    chosen = choose_groups(examples.groups, share, seed=seed)
    inside = [i for i, group in enumerate(examples.groups) if group in chosen]
    outside = [i for i, group in enumerate(examples.groups) if group not in chosen]
    return examples.select(outside), examples.select(inside)


def choose_groups(groups: Iterable[str], share: float, *, seed: object) -> set[str]:
    """The groups that are held out: at least one, wherever there are two."""
    hashes = {group: seed_of(seed, "split", group) / 2**63 for group in groups}
    chosen = {group for group, value in hashes.items() if value < share}
    if not chosen and len(hashes) > 1:
        chosen = {min(hashes, key=lambda group: hashes[group])}
    return chosen if len(chosen) < len(hashes) else set()


def data_roots() -> list[Path]:
    """Where data sets are looked for, in order: `AE_DATA`, usual places, the user's cache."""
    named = [Path(os.environ["AE_DATA"])] if os.environ.get("AE_DATA") else []
    return [*named, Path("data"), Path("../shared/data"), cache_root()]


def cache_root() -> Path:
    """Where this user's caches are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ae-toolkit"
