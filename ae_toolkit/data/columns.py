"""Columns that need not fit into memory: rows of files, rows in another order, groups by name.

Axes: N rows, B of them at once, R runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from ae_toolkit.errors import RunError
from ae_toolkit.files import checksum

SHARD_JSON = "shard.json"  #: beside the files of a shard: what else it holds, and that it is whole
READ_BYTES = 1 << 20  #: that are read at once, for rows that are near each other
NUM_AT_ONCE = 1 << 16  #: rows whose groups are looked up at once

Array = np.ndarray[Any, np.dtype[Any]]


class DamagedShard(RunError):
    """A file of columns is not what it was when it was written."""


class ArrayFile:
    """The rows of `.npy` files, one file after the other, `(N, *shape)`.

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

    def __init__(self, *paths: Path | str, checksums: Sequence[str] = ()):
        self.paths = [Path(path) for path in paths]
        self.unchecked = dict(enumerate(checksums))
        heads = [self._open(path) for path in self.paths]
        self.offsets, self.dtype = [head.offset for head in heads], heads[0].dtype
        self.ends = np.cumsum([len(head) for head in heads])
        self.shape = torch.Size((int(self.ends[-1]), *heads[0].shape[1:]))
        self.row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def gather_rows(self, index: Array, out: Array | None = None) -> Array:
        """Copies the rows at `index`, `(B,)`, into `out`; fast where neighbours are near.

        Raises:
            DamagedShard: A file was removed, cut or changed.
            RunError: A file cannot be read.
        """
        if out is None:
            out = np.empty((len(index), *self.shape[1:]), self.dtype)
        files = np.searchsorted(self.ends, index, side="right")
        inside = index - np.concatenate([[0], self.ends])[files]
        block = inside // max(READ_BYTES // self.row_bytes, 1)
        cuts = np.flatnonzero((np.diff(files) != 0) | (np.diff(block) != 0)) + 1
        for begin, end in pairwise([0, *cuts.tolist(), len(index)] if len(index) else []):
            near = inside[begin:end]
            first = int(near.min())
            rows = self._read(int(files[begin]), first, int(near.max()) + 1)
            np.take(rows, near - first, axis=0, out=out[begin:end], mode="clip")
        return out

    def _read(self, number: int, first: int, stop: int) -> Array:
        """Returns the rows from `first` to before `stop` of one file."""
        path, shape = self.paths[number], (stop - first, *self.shape[1:])
        with _reading(path):
            if number in self.unchecked and checksum(path) != self.unchecked[number]:
                raise ValueError("its checksum is another one")
            self.unchecked.pop(number, None)
            offset = self.offsets[number] + first * self.row_bytes
            found = np.fromfile(path, self.dtype, math.prod(shape), offset=offset)
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
        DamagedShard: The file was removed, cut or changed.
        RunError: It cannot be read.
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


Column = torch.Tensor | ArrayFile


def gather_rows(column: Column, rows: Array, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Copies some rows `(B,)` of a column, into `out` where there is one."""
    if isinstance(column, torch.Tensor):
        return torch.index_select(column, 0, torch.from_numpy(rows).to(column.device), out=out)
    if out is None:
        out = torch.empty(len(rows), *column.shape[1:], dtype=dtype_of(column))
    column.gather_rows(rows, out.numpy())
    return out


def dtype_of(column: Column) -> torch.dtype:
    """Returns the type of a column's numbers."""
    if isinstance(column, torch.Tensor):
        return column.dtype
    return torch.from_numpy(np.empty(0, column.dtype)).dtype


class IndexRuns:
    """Rows in an order of their own, kept as runs of consecutive ones.

    Args:
        index: rows `(N,)`, in pieces, so that they need not all be there at once.
    """

    def __init__(self, index: Iterable[Array]):
        firsts, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for piece in index:
            if len(piece):
                begins = np.flatnonzero(np.diff(piece, prepend=piece[0] - 2) != 1)
                firsts.append(piece[begins])
                lengths.append(np.diff(begins, append=len(piece)))
        ends = np.cumsum(np.concatenate(lengths))
        self.num = int(ends[-1]) if len(ends) else 0
        self.begins = ends - np.concatenate(lengths)  # (R,) positions
        self.shift = np.concatenate(firsts) - self.begins  # (R,) from a position to its row

    def __len__(self) -> int:
        return self.num

    def at(self, positions: Array) -> Array:
        """Returns the rows at some positions, `(B,)`."""
        return positions + self.shift[np.searchsorted(self.begins, positions, side="right") - 1]


class GroupColumn(Sequence[str]):
    """The group of each row: a number, and a table of names.

    Args:
        codes: `(N,)`, which name each row has.
        names: each one once; some may be nobody's.
    """

    def __init__(self, codes: Array, names: Sequence[str]):
        self.codes, self.names = codes, names

    @classmethod
    def of(cls, groups: Iterable[str]) -> GroupColumn:
        """Numbers the names of a list."""
        if isinstance(groups, GroupColumn):
            return groups
        table: dict[str, int] = {}
        codes = np.fromiter((table.setdefault(name, len(table)) for name in groups), np.int32)
        return cls(codes, list(table))

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.names[code] for code in self.codes[index].tolist()]
        return self.names[int(self.codes[index])]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), NUM_AT_ONCE):
            yield from self[start : start + NUM_AT_ONCE]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def __repr__(self) -> str:
        few = [*map(repr, self[:3]), *(["…"] if len(self) > 3 else [])]
        return f"[{', '.join(few)}] ({len(self)})"

    def present(self) -> Array:
        """Returns which names are somebody's, bool."""
        found = np.zeros(len(self.names), bool)
        found[self.codes] = True
        return found
