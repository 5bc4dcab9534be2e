"""A corpus in the making: files are read part by part, and parts are joined on the disk.

    KEY.parts/lock                          who is at work
    KEY.parts/part_000000000_000000256/     files 0 to 255 as columns; kept until the end
    KEY.parts/whole/                        what becomes KEY; y.npy grows by the parts in order

A part is renamed into place when it is whole. The `y` of the parts moves over into `y.npy`, so it
lies on the disk once; what of it has moved follows from which parts have none any more.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ae_toolkit.data.columns import CACHED, Array, as_bytes, checksums_of
from ae_toolkit.errors import Failure, Fault, Misuse
from ae_toolkit.files import checksum, is_sealed, seal, sync
from ae_toolkit.modality import Modality, describe, each_item, examples_of

PART_FILES = 256  #: files in a part, at most
PART_BYTES = 64 << 20  #: of its `y`, after which it ends
PART_SECONDS = 5.0  #: likewise

Y = "y.bin"


class File(NamedTuple):
    """A file, and its name below the folder that it was found in."""

    path: Path
    name: str


class Skipped(NamedTuple):
    """A file that could not be read, by its name below the folder, and why."""

    path: str
    reason: str


class Reader(NamedTuple):
    """How files are read.

    Attributes:
        modality: what reads them.
        group: the key by which an item is split; None: its file.
        work: the folder for the parts.
    """

    modality: Modality
    group: Callable[[Any], str] | None
    work: Path


class Part(NamedTuple):
    """Files `first` to before `stop`, read."""

    first: int
    stop: int
    folder: Path

    @classmethod
    def at(cls, work: Path, first: int, stop: int) -> Part:
        return cls(first, stop, work / f"part_{first:09d}_{stop:09d}")

    def about(self) -> dict[str, Any]:
        about = json.loads((self.folder / "part.json").read_text(encoding="utf-8"))
        self.need(is_sealed(about))
        return dict(about)

    def lengths(self) -> Array:
        return self._column("lengths.npy")

    def label(self, name: str) -> Array:
        return self._column(f"label_{self.about()['labels'].index(name)}.npy")

    def _column(self, name: str) -> Array:
        content = (self.folder / name).read_bytes()
        self.need(checksum(content) == self.about()["checksums"][name])
        return np.asarray(np.load(BytesIO(content)))

    def need(self, whole: bool) -> None:
        """Removes a part that is damaged, so that its files are read again.

        Raises:
            ValueError: it is.
        """
        if not whole:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise ValueError(f"{self.folder} is damaged")


def write_part(
    reader: Reader,
    files: Sequence[File],
    first: int,
    *,
    crashed: Mapping[int, str],
    watch: Callable[[int | None], None],
) -> int:
    """Reads some files into a part and returns how many; not all where that takes long.

    Args:
        reader: how.
        files: a few consecutive ones.
        first: the number of the first.
        crashed: number of a file -> why it is not to be read.
        watch: is told the number of the file before each of its items, and None after the last.

    Raises:
        Failure: the disk is full, or the data type makes tensors of several kinds.
    """
    until, num, part = (
        time.monotonic() + PART_SECONDS,
        0,
        reader.work / f".part_{first:09d}_{os.getpid()}",
    )
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        with (part / Y).open("wb", buffering=1 << 20) as y:
            rows = _Rows(reader, y, watch)
            for num, file in enumerate(files, start=1):
                rows.add(file, first + num - 1, crashed.get(first + num - 1, ""))
                if y.tell() > PART_BYTES or time.monotonic() > until:
                    break
            watch(None)
        rows.save(part)
        sync(*part.iterdir(), part)
        os.replace(part, Part.at(reader.work, first, first + num).folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise _unwritable(reader.work, error) from error
    return num


class _Rows:
    """The columns of a part, as far as they are read."""

    def __init__(self, reader: Reader, y: Any, watch: Callable[[int | None], None]):
        self.reader, self.y, self.watch = reader, y, watch
        self.dtype: np.dtype[Any] | None = None
        self.lengths: list[int] = []
        self.labels: dict[str, list[float]] = {}
        self.groups: list[str] = []
        self.skipped: list[Skipped] = []

    def add(self, file: File, number: int, crashed: str) -> None:
        """Reads a file: all of it or, where it fails, nothing."""
        start, num = self.y.tell(), len(self.lengths)
        try:
            if crashed:
                raise Failure(crashed)
            self.watch(number)
            for item in each_item(file.path, self.reader.modality):
                self._add_item(item, file.name)
                self.watch(number)
        except (Failure, Misuse, OSError) as error:
            if isinstance(error, _Kinds):
                raise
            self.skipped.append(Skipped(file.name, str(error).removeprefix(f"{file.path}: ")))
            self.y.seek(start)
            self.y.truncate()
            columns: list[list[Any]] = [self.lengths, self.groups, *self.labels.values()]
            for column in columns:
                del column[num:]

    def _add_item(self, item: Any, name: str) -> None:
        modality, group = self.reader.modality, self.reader.group
        length, *rest = modality.shape
        key = group(item) if group else name
        for y, labels, _ in examples_of(item, modality, training=True):
            values = y.detach().cpu().contiguous().numpy()
            if not self.lengths:
                self.dtype, self.labels = values.dtype, {name: [] for name in labels}
            if values.dtype != self.dtype or labels.keys() != self.labels.keys():
                raise _Kinds(_several(modality))
            self.y.write(values.data)
            missing = (length - len(values), *rest)
            self.y.write(bytes(math.prod(missing) * values.itemsize))
            self.lengths.append(len(values))
            self.groups.append(key)
            for label, value in labels.items():
                self.labels[label].append(value)

    def save(self, folder: Path) -> None:
        if not self.lengths:
            (folder / Y).unlink()
        np.save(folder / "lengths.npy", np.array(self.lengths, np.int32))
        for i, column in enumerate(self.labels.values()):
            np.save(folder / f"label_{i}.npy", np.array(column))
        runs: list[tuple[str, int]] = []
        for name in self.groups:
            num = runs.pop()[1] if runs and runs[-1][0] == name else 0
            runs.append((name, num + 1))
        about = {
            "rows": len(self.lengths),
            "dtype": self.dtype.str if self.dtype else "",
            "labels": [*self.labels],
            "groups": runs,
            "skipped": self.skipped,
            "checksums": {path.name: checksum(path) for path in folder.iterdir()},
        }
        (folder / "part.json").write_text(json.dumps(seal(about)), encoding="utf-8")


class _Kinds(Fault):
    """The examples of a data type do not fit into columns."""


def _several(modality: Modality) -> str:
    return f"{describe(modality)} must make tensors of one dtype, with the same labels each time"


class Joining:
    """The parts of a corpus, and what is joined of them.

    Args:
        reader: how the files are read.
        num_files: in all.
    """

    def __init__(self, reader: Reader, num_files: int):
        self.reader, self.num_files = reader, num_files
        self.whole = reader.work / "whole"
        self.found: dict[int, Part] = {}
        self.dtype = ""
        self.labels: list[str] = []
        try:
            self._resume()
        except (OSError, ValueError, KeyError, TypeError):  # a broken part: from the beginning
            for path in reader.work.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
            self._resume()

    def _resume(self) -> None:
        self.rows = self.joined = 0
        self.found.clear()
        for path in self.reader.work.glob(".part_*"):
            shutil.rmtree(path, ignore_errors=True)
        self.whole.mkdir(exist_ok=True)
        at = 0
        for path in sorted(self.reader.work.glob("part_*")):
            first, stop = map(int, path.name.split("_")[1:])
            if first < at:  # written twice, the second time as far as another one
                shutil.rmtree(path)
                continue
            about = Part(first, stop, path).about()
            moved = not about["rows"] or not (path / Y).exists()
            if not moved and (path / Y).stat().st_size != self._bytes(about["rows"], about):
                shutil.rmtree(path)  # it was cut: these files are read again
                continue
            self.found[first], at = Part(first, stop, path), stop
            if moved and first == self.joined:
                self._count(self.found[first], about)
            elif moved and about["rows"]:
                raise ValueError(f"{path} has lost its rows")
        if self.rows and (self.whole / "y.npy").stat().st_size < self._size():
            raise ValueError(f"{self.whole} was cut")

    def gaps(self) -> Iterator[range]:
        """The files that are still to be read, a part's worth at a time."""
        at = 0
        for part in [*self.parts(), Part(self.num_files, self.num_files, Path())]:
            for first in range(at, part.first, PART_FILES):
                yield range(first, min(first + PART_FILES, part.first))
            at = part.stop

    def parts(self) -> list[Part]:
        """Those that are whole, in order."""
        return [part for _, part in sorted(self.found.items())]

    def add(self, first: int, num: int) -> None:
        """Counts a part that was written."""
        self.found[first] = Part.at(self.reader.work, first, first + num)

    def move(self, *, least: int = PART_BYTES) -> None:
        """Moves the `y` of the parts that are next over into `y.npy`, where it is worth it."""
        with self._in_use(self.reader.work):
            ready: list[Part] = []
            size, at = 0, self.joined
            while at in self.found:
                part = self.found[at]
                size += (part.folder / Y).stat().st_size if (part.folder / Y).exists() else 0
                ready, at = [*ready, part], part.stop
            if size < least or not ready:
                return
            with (self.whole / "y.npy").open("ab") as y:
                for part in ready:
                    about = part.about()
                    if about["rows"]:
                        self._expect(about)
                        part.need(checksum(part.folder / Y) == about["checksums"][Y])
                        y.truncate(self._size())
                        with (part.folder / Y).open("rb") as mine:
                            shutil.copyfileobj(mine, y, 1 << 20)
                        y.flush()
                        if os.fstat(y.fileno()).st_size != self._size() + self._bytes(
                            about["rows"], about
                        ):
                            raise ValueError(f"{part.folder} was cut")
                    self._count(part, about)
                y.flush()
                os.fsync(y.fileno())
            sync(self.whole)
            for part in ready:
                (part.folder / Y).unlink(missing_ok=True)

    def finish(self, folder: Path) -> list[Skipped]:
        """Makes the corpus of all parts and returns which files were skipped.

        Args:
            folder: the place of the corpus; nothing is put there where there is no example.
        """
        self.move(least=0)
        with self._in_use(folder):
            parts = self.parts()
            skipped = [Skipped(*row) for part in parts for row in part.about()["skipped"]]
            if not self.rows:
                return skipped
            self._write_columns()
            self._write_groups()
            self._check_rows()
            sums = {path.name: checksums_of(path) for path in self.whole.glob("*.npy")}
            rest = {"labels": self.labels, "skipped": skipped, "checksums": sums}
            (self.whole / CACHED).write_text(json.dumps(seal(rest)), encoding="utf-8")
            sync(*self.whole.iterdir(), self.whole)
            if folder.exists():
                os.replace(folder, self.reader.work / "former")
            os.replace(self.whole, folder)
            sync(folder.parent)
        return skipped

    @contextmanager
    def _in_use(self, written: Path) -> Iterator[None]:
        """Turns what goes wrong with the parts, or with what is written, into a sentence.

        Raises:
            Failure: so it is.
        """
        try:
            yield
        except (FileNotFoundError, ValueError, KeyError, EOFError) as error:
            raise Failure(
                f"{self.reader.work}: was removed or damaged while it was in use: run it again"
            ) from error
        except OSError as error:
            raise _unwritable(written, error) from error

    def _check_rows(self) -> None:
        """Makes sure that the rows of all parts are still what they were when they were read."""
        start = self._size() - self._bytes(self.rows, {"dtype": self.dtype})
        for part in self.parts():
            about = part.about()
            if about["rows"]:
                size = self._bytes(about["rows"], about)
                found = checksum(self.whole / "y.npy", start=start, size=size)
                part.need(found == about["checksums"][Y])
                start += size

    def _write_columns(self) -> None:
        with (self.whole / "y.npy").open("r+b") as file:
            file.write(_header((self.rows, *self.reader.modality.shape), np.dtype(self.dtype)))
        parts = [part for part in self.parts() if part.about()["rows"]]
        length = self.reader.modality.shape[0]
        if any(part.lengths().min() < length for part in parts):
            masks = (np.arange(length) < part.lengths()[:, None] for part in parts)
            _write(self.whole / "mask.npy", masks, (self.rows, length), np.dtype(bool))
        for i, name in enumerate(self.labels):
            kind = np.result_type(*{part.label(name).dtype for part in parts})
            columns = (part.label(name).astype(kind) for part in parts)
            _write(self.whole / f"label_{i}.npy", columns, (self.rows,), kind)

    def _write_groups(self) -> None:
        """Numbers the groups in the order in which they come, by hashes: names may be many."""
        runs = [part.about()["groups"] for part in self.parts()]
        prints = b"".join(
            blake2b(as_bytes(name), digest_size=8).digest() for part in runs for name, _ in part
        )
        _, first, which = np.unique(
            np.frombuffer(prints, np.uint64), return_index=True, return_inverse=True
        )
        order = np.argsort(first)
        code_of_run = np.argsort(order).astype(np.int32)[which]
        counts = np.array([num for part in runs for _, num in part])
        np.save(self.whole / "groups.npy", np.repeat(code_of_run, counts))
        names = [name for part in runs for name, _ in part]
        texts = [as_bytes(names[i]) for i in first[order].tolist()]
        np.save(self.whole / "ends.npy", np.cumsum([0, *map(len, texts)]))
        # One byte more, since a file of no rows cannot be opened.
        np.save(self.whole / "names.npy", np.frombuffer(b"".join([*texts, b"\0"]), np.uint8))

    def _count(self, part: Part, about: Mapping[str, Any]) -> None:
        if about["rows"]:
            self._expect(about)
        self.rows, self.joined = self.rows + about["rows"], part.stop

    def _expect(self, about: Mapping[str, Any]) -> None:
        if not self.rows:
            self.dtype, self.labels = about["dtype"], about["labels"]
        if (about["dtype"], {*about["labels"]}) != (self.dtype, {*self.labels}):
            raise _Kinds(_several(self.reader.modality))

    def _size(self) -> int:
        """Bytes of `y.npy` as far as it is joined."""
        shape, about = (self.rows, *self.reader.modality.shape), {"dtype": self.dtype}
        return len(_header(shape, np.dtype(self.dtype))) + self._bytes(self.rows, about)

    def _bytes(self, rows: int, about: Mapping[str, Any]) -> int:
        """Bytes of the `y` of so many rows."""
        return rows * math.prod(self.reader.modality.shape) * np.dtype(about["dtype"]).itemsize


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What a `.npy` file begins with; as long for any number of rows."""
    file = BytesIO()
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        file, {"descr": description, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _write(path: Path, pieces: Iterable[Array], shape: tuple[int, ...], dtype: Any) -> None:
    with path.open("wb") as file:
        file.write(_header(shape, dtype))
        for piece in pieces:
            file.write(piece.data)


def _unwritable(path: Path, error: OSError) -> Failure:
    return Failure(f"{path}: cannot be written, {error.strerror or error}")
