"""Columns that need not fit into memory: rows of a file, runs of rows, names of groups.

Files are read and never mapped: the pages of a map count as memory of the process that touches
them, and a mapped file that is cut ends the process, where a read is one sentence.

Axes: N rows, B of them at once, R runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from ae_toolkit.errors import Failure
from ae_toolkit.files import checksum

READ = 4 << 20  #: bytes that are read at once, at most
CHECKED = 1 << 20  #: bytes of a block that has a checksum
SUM_CHARS = 8  #: of a checksum in hexadecimal
GAP = 64 << 10  #: bytes between two wanted rows that are rather read than skipped
MANY = 1 << 16  #: rows or names that are looked at at once

CACHED = "rest.json"  #: beside the files of a cache: what else it holds, and that it is whole

KEPT = "surrogatepass"  # what is no UTF-8 in a file's name

Array = np.ndarray[Any, np.dtype[Any]]


class Stored:
    """The rows of a `.npy` file, `(N, *shape)`.

    Args:
        path: of the file. It is opened anew for each reading, so nothing has to be closed.
        checksums: of its blocks, as `checksums_of` gives them; each is checked before the first
            row of it is given away. Empty: none is known.

    Raises:
        Failure: it cannot be read.
        ValueError: it is no `.npy` file of numbers, or is cut short.
    """

    def __init__(self, path: Path | str, checksums: str = ""):
        self.path = Path(path)
        self.unchecked = dict(enumerate(re.findall("." * SUM_CHARS, checksums)))
        try:
            header = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise self._failure(error) from error
        if not isinstance(header, np.memmap) or not (header.size and header.flags.c_contiguous):
            raise ValueError(f"{path}: holds no rows of numbers, one after the other")
        self.shape, self.dtype = torch.Size(header.shape), header.dtype
        self.offset = header.offset
        self.row_bytes = header.nbytes // len(header)
        if self.unchecked:
            with FileIO(self.path) as file:
                self._check(file, 0, self.offset)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, index: Array, out: Array | None = None) -> Array:
        """The rows at `index`, `(B,)`, into `out`; fast where many follow each other closely.

        Raises:
            Failure: the file was removed or cut.
        """
        if out is None:
            out = np.empty((len(index), *self.shape[1:]), self.dtype)
        near, most = GAP // self.row_bytes + 1, max(READ // self.row_bytes, 1)
        step, block = np.diff(index), index // most
        cuts = np.flatnonzero((step < 1) | (step > near) | (block[1:] != block[:-1])) + 1
        try:
            with FileIO(self.path) as file:
                for begin, end in pairwise([0, *cuts.tolist(), len(index)]):
                    if begin == end:
                        continue
                    first, last = int(index[begin]), int(index[end - 1])
                    if last - first == end - begin - 1:
                        self._fill(out[begin:end], file, first)
                        continue
                    span = np.empty((last - first + 1, *self.shape[1:]), self.dtype)
                    self._fill(span, file, first)
                    out[begin:end] = span[index[begin:end] - first]
        except OSError as error:
            raise self._failure(error) from error
        return out

    def span(self, start: int, stop: int) -> Array:
        """The rows from `start` to before `stop`, in memory of their own.

        Raises:
            Failure: the file was removed or cut.
        """
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        try:
            with FileIO(self.path) as file:
                self._fill(out, file, start)
        except OSError as error:
            raise self._failure(error) from error
        return out

    def _fill(self, out: Array, file: FileIO, first: int) -> None:
        rest = out.reshape(-1).view(np.uint8).data
        start = self.offset + first * self.row_bytes
        if self.unchecked:
            self._check(file, start, start + len(rest))
        file.seek(start)
        while rest:
            num = file.readinto(rest)
            if not num:
                at = first + (out.nbytes - len(rest)) // self.row_bytes
                raise Failure(
                    f"{self.path}: was cut while it was in use: row {at:,} of {len(self):,} and "
                    f"what follows is gone"
                )
            rest = rest[num:]

    def _check(self, file: FileIO, start: int, stop: int) -> None:
        """Compares the blocks of some bytes with their checksums, once.

        Raises:
            Failure: one is damaged. What says that the cache is whole is removed.
        """
        for block in range(start // CHECKED, -(-stop // CHECKED)):
            known = self.unchecked.get(block)
            if known is None:
                continue
            file.seek(block * CHECKED)
            if checksum(_read(file, CHECKED)) != known:
                (self.path.parent / CACHED).unlink(missing_ok=True)
                raise Failure(f"{self.path}: is damaged; run it again, and it is made anew")
            self.unchecked.pop(block, None)  # another thread may have been faster

    def _failure(self, error: OSError) -> Failure:
        return Failure(f"{self.path}: cannot be read, {error.strerror or error}")


def checksums_of(path: Path) -> str:
    """The checksums of the blocks of a file, one after the other.

    Raises:
        OSError: it cannot be read.
    """
    with FileIO(path) as file:
        return "".join(checksum(block) for block in iter(lambda: _read(file, CHECKED), b""))


def _read(file: FileIO, num: int) -> bytes:
    """So many bytes of a file, or as many as there are."""
    found = b""
    while some := file.read(num - len(found)):
        found += some
    return found


Column = torch.Tensor | Stored


def take(column: Column, rows: Array, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Some rows `(B,)` of a column, copied; into `out` where there is one."""
    if isinstance(column, torch.Tensor):
        return torch.index_select(column, 0, torch.from_numpy(rows).to(column.device), out=out)
    if out is None:
        out = torch.empty(len(rows), *column.shape[1:], dtype=type_of(column))
    column.take(rows, out.numpy())
    return out


def type_of(column: Column) -> torch.dtype:
    """The type of a column's numbers."""
    if isinstance(column, torch.Tensor):
        return column.dtype
    return torch.from_numpy(np.empty(0, column.dtype)).dtype


class Runs:
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
        """The rows at some positions, `(B,)`."""
        return positions + self.shift[np.searchsorted(self.begins, positions, side="right") - 1]


def as_bytes(name: str) -> bytes:
    """A name in UTF-8, or as near to it as names of files are."""
    return name.encode(errors=KEPT)


class Names(Sequence[str]):
    """A table of names in two files.

    Args:
        text: all of them in UTF-8, one after the other.
        ends: where each one begins, and where the last one ends.
    """

    def __init__(self, text: Stored, ends: Stored):
        self.text, self.ends = text, ends

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self.take(np.array([range(len(self))[index]]))[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), MANY):
            yield from self.take(np.arange(start, min(start + MANY, len(self))))

    def take(self, index: Array) -> list[str]:
        """The names at `index`, `(B,)`."""
        if not len(index):
            return []
        begins, ends = self.ends.take(index), self.ends.take(index + 1)
        low, high = int(begins.min()), int(ends.max())
        if high - low > READ:  # far apart: each by itself
            spans = zip(begins.tolist(), ends.tolist(), strict=True)
            return [self.text.span(a, b).tobytes().decode(errors=KEPT) for a, b in spans]
        text = self.text.span(low, high).tobytes()
        spans = zip((begins - low).tolist(), (ends - low).tolist(), strict=True)
        return [text[a:b].decode(errors=KEPT) for a, b in spans]


class Groups(Sequence[str]):
    """The group of each row: a number, and a table of names.

    Args:
        codes: `(N,)`, which name each row has.
        names: each one once; some may be nobody's.
    """

    def __init__(self, codes: Array, names: Sequence[str]):
        self.codes, self.names = codes, names

    @classmethod
    def of(cls, groups: Sequence[str]) -> Groups:
        """Numbers the names of a list."""
        if isinstance(groups, Groups):
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
            return list(Groups(self.codes[index], self.names))
        return self.names[int(self.codes[index])]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), MANY):
            found, which = np.unique(self.codes[start : start + MANY], return_inverse=True)
            names = self.names
            near = names.take(found) if isinstance(names, Names) else [names[i] for i in found]
            yield from (near[i] for i in which.tolist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def __repr__(self) -> str:
        few = [*map(repr, self[:3]), *(["…"] if len(self) > 3 else [])]
        return f"[{', '.join(few)}] ({len(self)})"

    def present(self) -> Array:
        """Which names are somebody's, bool."""
        found = np.zeros(len(self.names), bool)
        found[self.codes] = True
        return found
