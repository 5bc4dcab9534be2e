"""Shards: what some files of a folder hold, as columns on the disk.

    STORE/000000000-000000114/   files 0 to 113: y.npy, mask.npy, label_0.npy …, shard.json

A shard is written beside its place and renamed into it, so it is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    skipped: list[tuple[str, str]]
    checksums: dict[str, str]


def find_shards(store: Path) -> list[Shard]:
    """Returns the whole shards of a store in the order of their files, without overlaps."""
    found: list[Shard] = []
    for folder in sorted(store.glob("[0-9]*-*")):
        try:
            about = json.loads((folder / SHARD_JSON).read_text(encoding="utf-8"))
            first, stop = map(int, folder.name.split("-"))
        except (OSError, ValueError):
            continue
        is_whole = isinstance(about, dict) and CHECKSUM_KEY in about and is_sealed(about)
        if is_whole and first >= (found[-1].stop if found else 0):
            del about[CHECKSUM_KEY]
            found.append(Shard(first, stop, folder, **about))
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
        with _writing(reader.store):
            folder.mkdir()
            with (folder / "y").open("wb", buffering=1 << 20) as y:
                rows = _Rows(reader, y)
                while num < len(files) and y.tell() <= SHARD_BYTES and time.monotonic() < ends:
                    rows.add(files[num], first + num, crashed.get(first + num), watch)
                    num += 1
            rows.save(folder)
            place = reader.store / f"{first:09d}-{first + num:09d}"
            shutil.rmtree(place, ignore_errors=True)
            os.replace(folder, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return num


class _Rows:
    """The rows of a shard, as far as they are read; `y` goes to the disk at once, padded."""

    def __init__(self, reader: Reader, y: BinaryIO):
        self.reader, self.y = reader, y
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.labels: list[str] = []
        self.rows: list[tuple[Any, ...]] = []  # length, group, labels
        self.skipped: list[Skipped] = []

    def add(
        self, file: File, number: int, crashed: str | None, watch: Callable[[int], None]
    ) -> None:
        """Adds all rows of a file or, where it cannot be read, none."""
        start, num = self.y.tell(), len(self.rows)
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
            del self.rows[num:]

    def _add_item(self, item: Any, name: str) -> None:
        modality, group, store = self.reader
        key = group(item) if group else name
        for y, labels, _ in examples_of(item, modality, training=True):
            values = y.detach().cpu().contiguous().numpy()
            if not self.rows:
                self.dtype, self.labels = values.dtype, sorted(labels)
            if values.dtype != self.dtype or sorted(labels) != self.labels:
                raise several_kinds(modality)
            padding = np.zeros((modality.shape[0] - len(values), *modality.shape[1:]), self.dtype)
            with _writing(store):
                self.y.write(values.data)
                self.y.write(padding.data)
            self.rows.append((len(values), key, *(labels[name] for name in self.labels)))

    def save(self, folder: Path) -> None:
        """Writes what is there as `.npy` files and, at last, `SHARD_JSON`."""
        modality = self.reader.modality
        lengths, groups, *labels = zip(*self.rows, strict=True) if self.rows else ((), ())
        is_real = np.arange(modality.shape[0]) < np.array(lengths)[:, None]
        if self.rows:
            shape = (len(self.rows), *modality.shape)
            np.save(folder / "y.npy", np.memmap(folder / "y", self.dtype, "r", shape=shape))
            np.save(folder / "mask.npy", is_real)
        (folder / "y").unlink()
        for i, (name, column) in enumerate(zip(self.labels, labels, strict=False)):
            dtype = np.int64 if modality.labels[name] else np.float64
            np.save(folder / f"label_{i}.npy", np.array(column, dtype))
        about = {
            "is_full": bool(is_real.all()),
            "dtype": self.dtype.str,
            "labels": self.labels,
            "groups": [(name, len([*same])) for name, same in groupby(groups)],
            "skipped": self.skipped,
            "checksums": {path.name: checksum(path) for path in folder.iterdir()},
        }
        (folder / SHARD_JSON).write_text(json.dumps(seal(about)), encoding="utf-8")


def several_kinds(modality: Modality) -> StoreFailure:
    who = describe(modality)
    return StoreFailure(f"{who} must make tensors of one dtype, with the same labels each time")


@contextmanager
def _writing(store: Path) -> Iterator[None]:
    """Raises StoreFailure where something cannot be written."""
    try:
        yield
    except OSError as error:
        raise StoreFailure(f"{store}: cannot be written, {error.strerror or error}") from error
