"""Columns that need not fit into memory: the rows of files. Axes: N rows, B of them at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ae_toolkit.errors import RunError
from ae_toolkit.files import checksum

SHARD_JSON = "shard.json"  #: beside the files of a shard: what else it holds, and that it is whole
READ_BYTES = 1 << 20  #: that are read at once, for rows that are near each other

Array = np.ndarray[Any, np.dtype[Any]]


class DamagedShard(RunError):
    """A file of columns is not what it was when it was written."""


class ArrayFile:
    """The rows of `.npy` files, one file after the other, `(N, *shape)`; used as a tensor is.

    Files are read and never stay mapped: pages of a map count as memory of the process that touches
    them, and a mapped file that is cut ends the process. They are opened anew for each reading, so
    nothing has to be closed.

    Args:
        paths: of files of one dtype and one shape of rows.
        checksums: of each file, compared before the first row of it is given away; empty: unknown.

    Raises:
        DamagedShard: A file was removed, or is no whole `.npy` file of numbers.
        RunError: A file cannot be read.
    """

    device = torch.device("cpu")  #: where its rows are read to

    def __init__(self, *paths: Path | str, checksums: Sequence[str] = ()):
        self.paths = [Path(path) for path in paths]
        self.unchecked = dict(enumerate(checksums))
        heads = [self._open(path) for path in self.paths]
        self.offsets, self.kind = [head.offset for head in heads], heads[0].dtype
        self.dtype = torch.from_numpy(np.empty(0, self.kind)).dtype
        self.ends = np.cumsum([len(head) for head in heads])
        self.shape = torch.Size((int(self.ends[-1]), *heads[0].shape[1:]))
        self.row_bytes = math.prod(self.shape[1:]) * self.kind.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Copies the rows at `index`, `(B,)`; `dim` is 0. It is fast where neighbours are near.

        Raises:
            DamagedShard: A file was removed, cut or changed.
            RunError: A file cannot be read.
        """
        at, out = index.numpy(), np.empty((len(index), *self.shape[1:]), self.kind)
        files = np.searchsorted(self.ends, at, side="right")
        inside = at - np.concatenate([[0], self.ends])[files]
        block = inside // max(READ_BYTES // self.row_bytes, 1)
        cuts = np.flatnonzero((np.diff(files) != 0) | (np.diff(block) != 0)) + 1
        for begin, end in pairwise([0, *cuts.tolist(), len(at)] if len(at) else []):
            near = inside[begin:end]
            first = int(near.min())
            rows = self._read(int(files[begin]), first, int(near.max()) + 1)
            np.take(rows, near - first, axis=0, out=out[begin:end], mode="clip")
        return torch.from_numpy(out)

    def _read(self, number: int, first: int, stop: int) -> Array:
        """Returns the rows from `first` to before `stop` of one file."""
        path, shape = self.paths[number], (stop - first, *self.shape[1:])
        with _reading(path):
            if number in self.unchecked and checksum(path) != self.unchecked[number]:
                raise ValueError("its checksum is another one")
            self.unchecked.pop(number, None)
            offset = self.offsets[number] + first * self.row_bytes
            found = np.fromfile(path, self.kind, math.prod(shape), offset=offset)
            return found.reshape(shape)

    @staticmethod
    def _open(path: Path) -> Any:
        with _reading(path):
            head = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(head, np.memmap) or not head.flags.c_contiguous:
                raise ValueError("it holds no rows of numbers, one after the other")
            return head


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong with a file into a sentence, and marks its shard as damaged.

    Raises:
        DamagedShard: the file was removed, cut or changed.
        RunError: it cannot be read.
    """
    try:
        yield
    except (FileNotFoundError, ValueError, EOFError) as error:
        (path.parent / SHARD_JSON).unlink(missing_ok=True)
        gone = isinstance(error, FileNotFoundError)
        what = "was removed" if gone else f"is damaged or was cut ({error})"
        raise DamagedShard(f"{path}: {what}: run it again, and a cache is made anew") from error
    except OSError as error:
        raise RunError(f"{path}: cannot be read, {error.strerror or error}") from error


Column = Tensor | ArrayFile
