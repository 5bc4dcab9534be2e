"""Folders of files as data sets: which files there are, what they hold, and their split.

What was read is kept in the user's cache, under a key of all that it depends on: the files' names,
sizes and times, the data type's settings and the code of its package. Delete the cache whenever you
like; it is made again. Nothing is ever deleted from it for you.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ae_toolkit import registry
from ae_toolkit.console import log, track
from ae_toolkit.contracts import Example
from ae_toolkit.data.examples import Examples, Split, cache_root, choose_test_groups
from ae_toolkit.data.shards import File, Reader, Skipped
from ae_toolkit.data.store import read_store
from ae_toolkit.errors import RunError, UsageError
from ae_toolkit.files import printable
from ae_toolkit.modality import Modality, examples_of, read_items
from ae_toolkit.version import CONTRACT_VERSION, __version__, former_names

T = TypeVar("T")

STORE_FORMAT = 3  #: of stores

TEST_SHARE = 0.1  #: of the groups of a folder
COMPARED_BYTES = 16 << 20  #: of examples that are compared at a time
MAX_TOLD = 10  #: skipped files that are named


class FolderDataset(NamedTuple):
    """What a folder's files hold.

    Attributes:
        examples: of all files; the group is the file.
        skipped: the files that could not be read.
        folder: where it is kept; None: nowhere.
        is_new: whether it was read just now, and not found in the cache.
    """

    examples: Examples
    skipped: list[Skipped]
    folder: Path | None
    is_new: bool


def files(*, modality: Modality, split: Split, path: str) -> Examples:
    """Any file or folder of the data type's own files; a tenth of them is the test split."""
    corpus = read_folder([Path(path)], modality, report=split == "train")
    return split_of(corpus.examples, modality, split)


def split_of(examples: Examples, modality: Modality, split: Split) -> Examples:
    """The training or the test split of a corpus, by a hash of the groups.

    What the test split has in common with the training split is left out of it. Where that leaves
    nothing, or there is one group only, it is said and the test is one in name only.
    """
    tested = choose_test_groups(examples.groups, TEST_SHARE, seed="test")
    if not tested.any():
        if split == "test":
            log("a single file leaves nothing to hold out: the test is on what was trained on")
        return examples
    if split == "train":
        return examples.select(~tested)
    inside = examples.select(tested)
    mine = [*_fingerprints(inside, modality)]
    known = set(mine)
    seen = {each for each in _fingerprints(examples.select(~tested), modality) if each in known}
    if known == seen:
        log("all that was held out occurs in what is trained on too: it tells little of the model")
        return inside
    return inside.select(np.array([each not in seen for each in mine]))


def _fingerprints(examples: Examples, modality: Modality) -> Iterator[bytes]:
    """Eight bytes of each example, the same where the data type says that examples are."""
    num = max(COMPARED_BYTES // examples.columns.row_bytes, 1)
    for start in range(0, len(examples), num):
        y = examples.at(range(start, min(start + num, len(examples)))).y
        for mine in modality.fingerprints(y):
            yield blake2b(mine, digest_size=8).digest()


def of_items(items: Iterable[Any], *, modality: Modality, split: Split) -> Examples:
    """Items that are at hand, as a data set; a tenth of them is the test split.

    Args:
        items: the same ones in the same order for both splits.
        modality: what makes tensors of them.
        split: which part of them is wanted.
    """
    rows = [
        Example(y, labels, str(i))
        for i, item in enumerate(items)
        for y, labels, _ in examples_of(item, modality, training=True)
    ]
    return split_of(Examples.stack(rows, length=modality.shape[0]), modality, split)


def read_folder(
    roots: Sequence[Path],
    modality: Modality,
    *,
    group: Callable[[Any], str] | None = None,
    report: bool = True,
    processes: int | None = None,
) -> FolderDataset:
    """Reads every file of a data type below some folders, or finds it in the cache.

    Args:
        roots: files or folders.
        modality: what reads them.
        group: the key by which an item is split; None: its file. A function of a module of the
            data type's package, so that the cache knows its code.
        report: say which files were skipped even where the cache remembers it.
        processes: that read, from the beginning; None: one for each core, where it is worth it.

    Raises:
        UsageError: there is nothing of the kind.
        RunError: none of the files could be read, or what they hold cannot be written.
    """
    files = [file for root in roots for file in _list_files(root, modality)]
    corpus = _read(files, modality, group, processes)
    where = ", ".join(map(str, roots))
    if report or corpus.is_new:
        _tell(corpus.skipped, len(files), where)
    if not len(corpus.examples):
        reason = corpus.skipped[0].reason if corpus.skipped else "nothing was found in them"
        raise RunError(f"{where}: none of {len(files)} files could be read, {reason}")
    return corpus


class Reading(NamedTuple):
    """What files that a user named hold.

    Attributes:
        names: of the items: of their file, with a number where it holds several.
        items: in the order of the files.
        skipped: the files that could not be read, by their paths.
        num_files: that were tried.
    """

    names: list[str]
    items: list[Any]
    skipped: list[Skipped]
    num_files: int


def read_files(paths: Iterable[Path], modality: Modality) -> Reading:
    """Reads files, and all files of the data type below folders; what is broken is skipped.

    Raises:
        UsageError: a path is of nothing, or there is nothing of the kind in a folder.
        RunError: the only file, or every one of them, is broken; the sentence says why.
    """
    found = list_files(paths, modality)
    names: list[str] = []
    items: list[Any] = []
    skipped: list[Skipped] = []

    def read(file: Path) -> list[Any]:
        if not (mine := read_items(file, modality)):
            raise RunError(f"{file}: nothing was found in it")
        return mine

    for file, mine in read_each(found, read, skipped):
        items += mine
        names += (f"{file.stem}-{i:03}" if len(mine) > 1 else file.stem for i in range(len(mine)))
    return Reading(names, items, skipped, len(found))


def list_files(paths: Iterable[Path], modality: Modality) -> list[Path]:
    """Files as they are, and in the place of a folder all files of the data type below it.

    Raises:
        UsageError: a path is of nothing, or there is nothing of the kind in a folder.
    """
    found = [f for path in paths for f in (find_files(path, modality) if path.is_dir() else [path])]
    for file in found:
        if not file.exists():
            raise UsageError(f"{file}: there is no such file")
    return found


def read_each(
    files: Sequence[Path], read: Callable[[Path], T], skipped: list[Skipped]
) -> Iterator[tuple[Path, T]]:
    """Reads files one at a time; those that `read` refuses go to `skipped`.

    Raises:
        RunError: the only file, or every one of them, is broken; the sentence says why.
    """
    for file in files:
        try:
            found = read(file)
        except (RunError, UsageError) as error:
            if len(files) == 1:
                raise
            skipped.append(Skipped(str(file), str(error).removeprefix(f"{file}: ")))
        else:
            yield file, found
    if skipped and len(skipped) == len(files):
        first = skipped[0]
        raise RunError(
            f"none of {len(files)} files could be read; the first is {first.path}: {first.reason}"
        )


def find_files(root: Path, modality: Modality) -> list[Path]:
    """Every file below `root` whose ending the data type knows, sorted.

    Raises:
        UsageError: there is nothing at `root`, or nothing of the kind in it.
    """
    return [file.path for file in _list_files(root, modality)]


def _list_files(root: Path, modality: Modality) -> list[File]:
    """The data type's files below a folder, sorted; of a file, itself.

    Raises:
        UsageError: there is nothing there, or nothing of the kind.
    """
    if not root.exists():
        raise UsageError(f"{root}: there is no such file or folder")
    if root.is_file():
        root, found = root.parent, [root.name]
    else:
        found = []
        for folder, _, names in os.walk(root):
            below = os.path.relpath(folder, root).replace(os.sep, "/")
            found += names if below == os.curdir else [f"{below}/{name}" for name in names]
    mine = [name for name in found if os.path.splitext(name)[1].lower() in modality.suffixes]
    mine = [name for name in mine if os.path.isfile(os.path.join(root, name))]
    if not mine:
        kinds = ", ".join(modality.suffixes)
        raise UsageError(f"{root}: there are no files that end in {kinds} ({len(found)} others)")
    return [File(root, name) for name in sorted(mine, key=lambda name: name.split("/"))]


def _read(
    files: Sequence[File],
    modality: Modality,
    group: Callable[[Any], str] | None,
    processes: int | None,
) -> FolderDataset:
    """Reads files into the cache; where that cannot be, into a folder that goes with this process.

    Raises:
        RunError: what they hold cannot be written, or does not fit together.
    """
    if place := _place(files, modality, group.__qualname__ if group else ""):
        is_new = not place.exists()
        with suppress(OSError):  # nobody may write there
            found = read_store(files, Reader(modality, group, place), processes=processes)
            return FolderDataset(*found, place, is_new)
    try:
        place = Path(tempfile.mkdtemp(prefix="ae-corpus-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        found = read_store(files, Reader(modality, group, place), processes=processes)
    except OSError as error:
        raise RunError(f"{place}: cannot be written, {error.strerror or error}") from error
    return FolderDataset(*found, None, True)


def _place(files: Sequence[File], modality: Modality, grouped_by: str) -> Path | None:
    """Where the cache of these files is or would be; None: it cannot have one."""
    kind, settings = type(modality), repr(sorted(vars(modality).items()))
    module = getattr(sys.modules[kind.__module__], "__file__", None)
    if not module or " at 0x" in settings:
        return None  # written in a notebook, or with settings that have no lasting name
    versions = (STORE_FORMAT, CONTRACT_VERSION, __version__, *_readers(kind))
    key = blake2b(
        repr((versions, kind.__qualname__, settings, grouped_by)).encode(), digest_size=16
    )
    for path in sorted(Path(module).parent.rglob("*.py")):
        key.update(path.name.encode() + b"\0" + blake2b(path.read_bytes()).digest())
    for file in track(files, "looking at files", unit="files"):
        name = os.path.join(file.root.absolute(), file.name)
        try:
            found = os.stat(name)
            state = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
        except OSError as error:
            state = str(error.strerror)
        key.update(os.fsencode(f"{name}\0{state}\0"))
    return cache_root() / "corpora" / key.hexdigest()


def _readers(kind: type[Modality]) -> Iterator[str]:
    """The versions of whatever the data type's distribution may read files by."""
    for _, origin, value in registry.modalities.origins():
        if value != f"{kind.__module__}:{kind.__qualname__}":
            continue
        for line in metadata.requires(origin.distribution) or []:
            name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            with suppress(metadata.PackageNotFoundError):
                yield f"{name} {metadata.version(name)}"


def _tell(skipped: Sequence[Skipped], total: int, where: str) -> None:
    if skipped:
        log(f"{where}: skipped {len(skipped)} of {total} files:")
    for path, reason in skipped[:MAX_TOLD]:
        log(printable(f"  {path}: {reason}").replace("\n", r"\n"))
    if len(skipped) > MAX_TOLD:
        log(f"  … and {len(skipped) - MAX_TOLD} more")


__getattr__ = former_names(
    __name__, {"Corpus": "FolderDataset", "part_of": "split_of", "read_corpus": "read_folder"}
)
