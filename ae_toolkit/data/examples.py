"""Files -> tensors -> batches on the device, split by group.

A dataset is a function `(*, modality, split, …own arguments) -> Examples`; `files` is the one that
works on every data type. Small data is copied and lives on the device in its storage dtype, where a
batch is an index operation; what outgrows that stays in its files, and a split of it is a view.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import compress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ae_toolkit.console import track
from ae_toolkit.contracts import Batch, Example, Shape
from ae_toolkit.data.columns import Array, ArrayFile, Column
from ae_toolkit.errors import PluginError, RunError, UsageError, did_you_mean, wrap_plugin_errors
from ae_toolkit.modality import Modality, describe
from ae_toolkit.randomness import seed_of
from ae_toolkit.recipe import Part, Recipe
from ae_toolkit.version import former_names

Split = Literal["train", "test"]

ON_DEVICE = 2 << 30  #: bytes up to which a data set is kept on the device
MAX_COPY_BYTES = 256 << 20  #: bytes up to which a part of a data set is a copy of it
LOOKED_AT_BYTES = 64 << 20  #: of examples that are checked at once
DIGEST_EXAMPLES = 64  #: examples that a digest looks at where the others are too many, or in files
MAX_DIGEST_BYTES = 64 << 20  #: bytes in memory that a digest looks at whole

CPU_DEVICE = torch.device("cpu")


class Columns(NamedTuple):
    """What a data set is made of: as a `Batch`, but some of it may lie in files."""

    y: Column
    mask: Column | None
    labels: Mapping[str, Column]

    @property
    def row_bytes(self) -> int:
        """Bytes of one example."""
        every = [self.y, *([] if self.mask is None else [self.mask]), *self.labels.values()]
        return sum(math.prod(c.shape[1:]) * c.dtype.itemsize for c in every)

    def map(self, change: Callable[[Column], Tensor]) -> Batch:
        """Makes a batch of them, column by column."""
        mask = None if self.mask is None else change(self.mask)
        return Batch(change(self.y), mask, {k: change(column) for k, column in self.labels.items()})

    def select(self, rows: Tensor) -> Batch:
        """Copies some rows, `(B,)`."""
        return self.map(lambda column: column.index_select(0, rows.to(column.device)))


class Examples:
    """A data set in columns.

    What outgrows memory stays in files, and a part of it is a view: `at` reads what it is asked
    for, while `y`, `mask` and `labels` read columns whole.

    Args:
        y: `(N, *shape)` in the storage dtype, in memory or in a file.
        mask: `(N, T)` bool, or None where every example fills its shape.
        labels: `(N,)` each.
        groups: the split key of each example.
        rows: `(N,)`, which rows of the columns, and in which order; None: all.
    """

    def __init__(
        self,
        y: Column,
        mask: Column | None,
        labels: Mapping[str, Column],
        groups: Sequence[str],
        *,
        rows: Tensor | None = None,
    ):
        self.columns, self.groups, self.rows = Columns(y, mask, labels), groups, rows

    def __len__(self) -> int:
        return self.columns.y.shape[0] if self.rows is None else len(self.rows)

    @property
    def shape(self) -> Shape:
        """Of one example."""
        return tuple(self.columns.y.shape[1:])

    @property
    def nbytes(self) -> int:
        """Of all columns."""
        return len(self) * self.columns.row_bytes

    @property
    def y(self) -> Tensor:
        return self._whole(self.columns.y)

    @property
    def mask(self) -> Tensor | None:
        return None if self.columns.mask is None else self._whole(self.columns.mask)

    @property
    def labels(self) -> Mapping[str, Tensor]:
        return {name: self._whole(column) for name, column in self.columns.labels.items()}

    def at(self, index: Tensor | range) -> Batch:
        """The examples at `index`, `(B,)`, wherever the columns live.

        Raises:
            RunError: they live in a file that was removed or cut.
        """
        if isinstance(index, range):
            index = torch.arange(index.start, index.stop, index.step)
        return self.columns.select(self.to_rows(index))

    def to_rows(self, index: Tensor) -> Tensor:
        """The rows of the columns that some examples `(B,)` have."""
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"examples {index.min()} to {index.max()} of {len(self)}")
        return index if self.rows is None else self.rows[index.cpu()]

    def select(self, chosen: Iterable[int] | Array) -> Examples:
        """A smaller data set: a copy where it is small, else a view.

        Args:
            chosen: numbers of examples, or an array of bool, `(N,)`.
        """
        if not isinstance(chosen, np.ndarray):
            chosen = np.fromiter(chosen, np.int64)
        if chosen.dtype == bool:
            groups, chosen = [*compress(self.groups, chosen)], np.flatnonzero(chosen)
        else:
            groups = [self.groups[i] for i in chosen]
        index, is_on_cpu = torch.from_numpy(chosen), self.columns.y.device == CPU_DEVICE
        if is_on_cpu and len(groups) * self.columns.row_bytes > MAX_COPY_BYTES:
            return Examples(*self.columns, groups, rows=self.to_rows(index))
        return Examples(*self.at(index), groups)

    def to(self, device: torch.device) -> Examples:
        """Moves the columns into the memory of a device, if they fit."""
        if self.nbytes > ON_DEVICE:
            return self

        def move(column: Column) -> Tensor:
            moved = self._whole(column).to(device)
            # What is not PyTorch's own memory may be a file that is mapped.
            return moved if moved.untyped_storage().resizable() else moved.clone()

        return Examples(*self.columns.map(move), self.groups)

    def digest(self) -> str:
        """A fingerprint by which a change is noticed: of small data, or the size and some of it."""
        # Whether a part is a copy or a view in files makes no difference, only its size does.
        num = len(self) if self.nbytes <= MAX_DIGEST_BYTES else DIGEST_EXAMPLES
        batch = self.at(
            torch.from_numpy(np.unique(np.linspace(0, len(self) - 1, num).round())).long()
        )
        kinds = [len(self), self.shape, self.columns.y.dtype, *sorted(batch.labels)]
        found = blake2b(repr(kinds).encode(), digest_size=16)
        for column in (batch.y, batch.mask, *(batch.labels[name] for name in sorted(batch.labels))):
            if column is not None:
                found.update(column.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def _whole(self, column: Column) -> Tensor:
        if isinstance(column, Tensor) and self.rows is None:
            return column
        return column.index_select(0, self.to_rows(torch.arange(len(self))).to(column.device))

    @classmethod
    def stack(cls, examples: Iterable[Example], *, length: int) -> Examples:
        """Gathers single examples, one at least.

        Args:
            examples: of one modality.
            length: of the first axis; shorter examples are padded at their end and masked.
        """
        rows = list(examples)
        lengths = torch.tensor([len(row.y) for row in rows])
        mask = None if bool((lengths == length).all()) else torch.arange(length) < lengths[:, None]
        y = rows[0].y.new_zeros(len(rows), length, *rows[0].y.shape[1:])
        for into, row in zip(y, rows, strict=True):
            into[: len(row.y)] = row.y
        labels = {
            name: torch.tensor(np.array([row.labels[name] for row in rows]))
            for name in rows[0].labels
        }
        return cls(y, mask, labels, [row.group for row in rows])


def load_data(recipe: Recipe, modality: Modality, split: Split) -> Examples:
    """Loads the recipe's data set.

    Raises:
        UsageError: there is no such data set, or it does not fit the data type.
        RunError: it cannot be read, or gives no examples.
    """
    examples = recipe.make("dataset", modality=modality, split=split)
    whose = f"dataset {recipe.data.name!r} of {recipe.origin('dataset')}"
    y = examples.columns.y if isinstance(examples, Examples) else examples
    if not isinstance(examples, Examples) or not isinstance(y, Tensor | ArrayFile):
        raise PluginError(f"{whose} must give Examples of a tensor, not {type(y).__name__}")
    if not len(examples):
        raise PluginError(f"{whose} gives no examples of the {split} split")
    if examples.groups is None or len(examples.groups) != len(examples):
        raise PluginError(f"{whose} must give a group for each of its {len(examples)} examples")
    if examples.shape != tuple(modality.shape):
        raise UsageError(
            f"dataset {recipe.data.name!r} has examples of shape {examples.shape}, "
            f"but modality {recipe.modality.name!r} is set to {tuple(modality.shape)}"
        )
    if type(modality).statistics is Modality.statistics:  # else it may not know enough yet
        _check_prepared(examples, modality)
    labels = examples.columns.labels
    if unknown := [name for name in recipe.condition if name not in labels]:
        raise UsageError(
            f"recipe: condition {unknown[0]!r} is no label of data set {recipe.data.name!r}: "
            f"{did_you_mean(unknown[0], labels)}"
        )
    return examples


def _check_prepared(examples: Examples, modality: Modality) -> None:
    """Makes sure that a data type prepares tensors of the shape that it is given.

    Raises:
        PluginError: it does not, or fails.
    """
    some = examples.at(range(min(2, len(examples)))).y
    with wrap_plugin_errors(f"{describe(modality)} cannot prepare it"):
        prepared = modality.prepare(some)
    if not isinstance(prepared, Tensor) or prepared.shape != some.shape:
        raise PluginError(
            f"{describe(modality)} must prepare a tensor of the shape that it is given, "
            f"{tuple(some.shape)}"
        )


def with_statistics(recipe: Recipe, modality: Modality, examples: Examples) -> Recipe:
    """Returns a recipe whose data type knows what it must of the data that is learned from.

    Raises:
        UsageError: the data type takes no such argument.
        RunError: it fails, or what it gives cannot be kept.
    """
    known = recipe.modality.arguments
    with wrap_plugin_errors(f"{describe(modality)} cannot take statistics of its data"):
        found = json.loads(json.dumps(modality.statistics(examples), allow_nan=False))
        return recipe.with_({f"modality.{k}": v for k, v in found.items() if k not in known})


def need_finite(examples: Examples, modality: Modality) -> None:
    """Makes sure that no number of a data set is missing or infinite.

    Raises:
        RunError: one is; the sentence says in which example of which group.
    """
    num = max(LOOKED_AT_BYTES // examples.columns.row_bytes, 1)
    bad: list[int] = []
    cause = ""
    for start in track(range(0, len(examples), num), "looking for nan in the data"):
        y = examples.at(range(start, min(start + num, len(examples)))).y
        wrong = ~modality.prepare(y).flatten(1).isfinite().all(1)
        if not bad and wrong.any() and bool(y[wrong][0].isfinite().all()):
            cause = f" once {describe(modality)} has prepared it"
        bad += (wrong.nonzero()[:, 0] + start).tolist()
    if bad:
        group = examples.groups[bad[0]]
        at = sum(examples.groups[i] == group for i in range(bad[0])) + 1
        raise RunError(
            f"the data holds nan or inf{cause}, in {len(bad):,} of {len(examples):,} examples; the "
            f"first is number {at} of {group!r}: mend it, or leave it out"
        )


def from_option(data: str) -> Part:
    """Reads `--data`: the name of a data set, or the path of a file or folder."""
    from ae_toolkit.registry import datasets

    if data.rpartition(":")[2] in datasets.names() and data != "files":
        return Part(name=data)
    if Path(data).exists():
        return Part.model_validate({"name": "files", "path": os.path.abspath(data)})
    raise UsageError(
        f"--data {data!r} is neither a file or folder nor one of: {', '.join(datasets.names())}"
    )


def train_test_split(examples: Examples, share: float, *, seed: int) -> tuple[Examples, Examples]:
    """Splits off a share by a seeded hash of the group: adding data moves nobody across."""
    if not share:
        return examples, examples.select([])
    chosen = choose_test_groups(examples.groups, share, seed=seed)
    return examples.select(~chosen), examples.select(chosen)


def choose_test_groups(groups: Sequence[str], share: float, *, seed: object) -> Array:
    """Which examples are held out, `(N,)` bool: one group at least, wherever there are two."""
    values = {name: seed_of(seed, "split", name) / 2**63 for name in dict.fromkeys(groups)}
    chosen = {name for name, value in values.items() if value < share}
    if not chosen and len(values) > 1:
        chosen = {min(values, key=values.__getitem__)}
    if len(chosen) == len(values):
        chosen = set()
    return np.fromiter((name in chosen for name in groups), bool, len(groups))


def data_roots() -> list[Path]:
    """Where data sets are looked for, in order: `AE_DATA`, usual places, the user's cache."""
    named = [Path(os.environ["AE_DATA"])] if os.environ.get("AE_DATA") else []
    return [*named, Path("data"), Path("../shared/data"), cache_root()]


def cache_root() -> Path:
    """Where this user's caches are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ae-toolkit"


__getattr__ = former_names(
    __name__, {"hold_out": "train_test_split", "choose_groups": "choose_test_groups"}
)
