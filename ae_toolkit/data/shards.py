"""Shards: what some files of a folder hold, as columns on the disk.

    STORE/000000000-000000114/   files 0 to 113: y.npy, mask.npy, label_0.npy …, shard.json

A shard is written beside its place and renamed into it, so it is there whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ae_toolkit.data.columns import SHARD_JSON
from ae_toolkit.errors import RunError, UsageError
from ae_toolkit.files import CHECKSUM_KEY, checksum, is_sealed, seal
from ae_toolkit.modality import Modality, describe, each_item, examples_of

SHARD_FILES = 4096  #: files in a shard, at most
SHARD_BYTES = 64 << 20  #: of its `y`, after which it ends
SHARD_SECONDS = 5.0 if sys.platform == "linux" else 60.0  #: likewise; a new process takes seconds


class File(NamedTuple):
    """A file by its name below the folder that it was found in, with slashes."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        return self.root / self.name


class Skipped(NamedTuple):
    """A file that could not be read, by its name below the folder, and why."""

    path: str
    reason: str


class Reader(NamedTuple):
    """How files are read.

    Attributes:
        modality: what reads them.
        group: gives the key by which an item is split; None: its file is.
        store: the folder of the shards.
    """

    modality: Modality
    group: Callable[[Any], str] | None
    store: Path


class StoreFailure(RunError):
    """The store fails, rather than one of its files: a full disk, tensors that do not fit."""


class Shard(NamedTuple):
    """What files `first` to before `stop` hold; `groups` are runs of rows with their lengths."""

    first: int
    stop: int
    folder: Path
    is_full: bool
    dtype: str
    labels: list[str]
    groups: list[tuple[str, int]]
    skipped: list[Skipped]
    checksums: dict[str, str]

    @classmethod
    def load(cls, folder: Path) -> Shard | None:
        """Opens a shard; None where it is not whole."""
        try:
            about = json.loads((folder / SHARD_JSON).read_text(encoding="utf-8"))
            if CHECKSUM_KEY not in about or not is_sealed(about):
                return None
            first, stop = map(int, folder.name.split("-"))
            return cls(
                first, stop, folder, bool(about["is_full"]), str(about["dtype"]),
                [*map(str, about["labels"])],
                [(str(name), int(num)) for name, num in about["groups"]],
                [Skipped(*row) for row in about["skipped"]], dict(about["checksums"]),
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            return None


def find_shards(store: Path) -> list[Shard]:
    """Returns the whole shards of a store in the order of their files, without overlaps."""
    found: list[Shard] = []
    for folder in sorted(store.glob("[0-9]*-*")):
        shard = Shard.load(folder)
        if shard and shard.first >= (found[-1].stop if found else 0):
            found.append(shard)
    return found


def find_gaps(shards: Sequence[Shard], num_files: int) -> list[range]:
    """Returns which files no shard holds."""
    begins = [0, *(shard.stop for shard in shards)]
    ends = [*(shard.first for shard in shards), num_files]
    return [range(a, b) for a, b in zip(begins, ends, strict=True) if a < b]


def write_shard(
    reader: Reader,
    files: Sequence[File],
    first: int,
    *,
    crashed: Mapping[int, str],
    watch: Callable[[int], None],
) -> int:
    """Reads files into a shard and returns how many: not all where they are large or slow.

    Args:
        reader: how.
        files: a few consecutive ones.
        first: the number of the first.
        crashed: number of a file -> why it is not to be read.
        watch: is told the number of the file before each of its items.

    Raises:
        StoreFailure: The disk is full, or the data type makes tensors of several kinds.
    """
    ends, num = time.monotonic() + SHARD_SECONDS, 0
    folder = reader.store / f".{first:09d}-{os.getpid()}"
    try:
        folder.mkdir()
        with (folder / "y.npy").open("wb", buffering=1 << 20) as y:
            rows = _Rows(reader, y)
            while num < len(files) and y.tell() <= SHARD_BYTES and time.monotonic() < ends:
                rows.add(files[num], first + num, crashed=crashed.get(first + num), watch=watch)
                num += 1
            rows.end()
        rows.save(folder)
        place = reader.store / f"{first:09d}-{first + num:09d}"
        shutil.rmtree(place, ignore_errors=True)
        os.replace(folder, place)
    except OSError as error:
        raise _unwritable(reader.store, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return num


class _Rows:
    """The rows of a shard, as far as they are read."""

    def __init__(self, reader: Reader, y: BinaryIO):
        self.reader, self.y = reader, y
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.labels: dict[str, list[float]] = {}
        self.lengths: list[int] = []
        self.groups: list[str] = []
        self.skipped: list[Skipped] = []

    def add(
        self, file: File, number: int, *, crashed: str | None, watch: Callable[[int], None]
    ) -> None:
        """Adds all rows of a file or, where it cannot be read, none."""
        start, num = self.y.tell(), len(self.lengths)
        try:
            if crashed:
                raise RunError(crashed)
            watch(number)
            for item in each_item(file.path, self.reader.modality):
                self._add_item(item, file.name)
                watch(number)
        except StoreFailure:
            raise
        except (RunError, UsageError, OSError) as error:
            self.skipped.append(Skipped(file.name, str(error).removeprefix(f"{file.path}: ")))
            self.y.seek(start)
            self.y.truncate()
            columns: list[list[Any]] = [self.lengths, self.groups, *self.labels.values()]
            for column in columns:
                del column[num:]

    def _add_item(self, item: Any, name: str) -> None:
        modality, group, store = self.reader
        key = group(item) if group else name
        for y, labels, _ in examples_of(item, modality, training=True):
            values = y.detach().cpu().contiguous().numpy()
            if not self.lengths:
                self.dtype, self.labels = values.dtype, {name: [] for name in labels}
            if values.dtype != self.dtype or labels.keys() != self.labels.keys():
                raise several_kinds(modality)
            missing = (modality.shape[0] - len(values), *modality.shape[1:])
            try:
                if not self.y.tell():
                    self.y.write(self._header())
                self.y.write(values.data)
                self.y.write(bytes(math.prod(missing) * values.itemsize))
            except OSError as error:
                raise _unwritable(store, error) from error
            self.lengths.append(len(values))
            self.groups.append(key)
            for label, value in labels.items():
                self.labels[label].append(value)

    def end(self) -> None:
        """Writes into the file of `y` how many rows it holds."""
        if self.lengths:
            self.y.seek(0)
            self.y.write(self._header())

    def save(self, folder: Path) -> None:
        """Writes everything else."""
        length = self.reader.modality.shape[0]
        if self.lengths:
            np.save(folder / "mask.npy", np.arange(length) < np.array(self.lengths)[:, None])
        for i, name in enumerate(sorted(self.labels)):
            dtype = np.int64 if self.reader.modality.labels[name] else np.float64
            np.save(folder / f"label_{i}.npy", np.array(self.labels[name], dtype))
        about = {
            "is_full": all(each == length for each in self.lengths),
            "dtype": self.dtype.str,
            "labels": sorted(self.labels),
            "groups": [(name, len([*same])) for name, same in groupby(self.groups)],
            "skipped": self.skipped,
            "checksums": {path.name: checksum(path) for path in folder.iterdir()},
        }
        (folder / SHARD_JSON).write_text(json.dumps(seal(about)), encoding="utf-8")

    def _header(self) -> bytes:
        """Returns what the `.npy` file begins with, as long for any number of rows."""
        header, shape = BytesIO(), (len(self.lengths), *self.reader.modality.shape)
        about = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, about)
        return header.getvalue()


def several_kinds(modality: Modality) -> StoreFailure:
    who = describe(modality)
    return StoreFailure(f"{who} must make tensors of one dtype, with the same labels each time")


def _unwritable(path: Path, error: OSError) -> StoreFailure:
    return StoreFailure(f"{path}: cannot be written, {error.strerror or error}")
