"""A folder of files as columns on the disk, read once.

What was read is kept in the user's cache, under a key of all that it depends on: the files' names
and contents, the data type's settings and the code of its package. Delete the cache whenever you
like; it is made again. Nothing is ever deleted from it for you. Every MB of it has a checksum that
is looked at when the MB is first used, and what is damaged is made again.

    corpora/KEY/{y, mask, label_0 …, groups, names, ends}.npy  rest.json
    corpora/KEY.parts/      of a reading that goes on, or that was ended; the next one goes on
    digests.sqlite          what the files held when they were last looked at
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import torch

from ae_toolkit import registry
from ae_toolkit.console import tell
from ae_toolkit.contracts import Example
from ae_toolkit.data.columns import CACHED, Array, Groups, Names, Stored, as_bytes
from ae_toolkit.data.digests import digests
from ae_toolkit.data.examples import COPIED, CPU, Examples, Split, cache_root, choose_groups
from ae_toolkit.data.ingest import at_work, ingest
from ae_toolkit.data.shards import File, Skipped
from ae_toolkit.errors import Failure, Misuse
from ae_toolkit.files import is_sealed
from ae_toolkit.modality import Modality, examples_of, read_items
from ae_toolkit.version import CONTRACT, __version__

T = TypeVar("T")

FORMAT = 2

TEST_SHARE = 0.1  #: of the groups of a folder
COMPARED = 16 << 20  #: bytes of examples that are compared at a time


class Corpus(NamedTuple):
    """What a folder's files hold.

    Attributes:
        examples: of all files; the group is the file.
        skipped: the files that could not be read.
        folder: where it is kept; None: nowhere.
    """

    examples: Examples
    skipped: list[Skipped]
    folder: Path | None


def files(*, modality: Modality, split: Split, path: str) -> Examples:
    """Any file or folder of the data type's own files; a tenth of them is the test split.

    Files that cannot be read are skipped, counted and listed. What a test file has in common with
    a training file, example by example, is left out of the test split.
    """
    corpus = read_corpus([Path(path)], modality, report=split == "train")
    return part_of(corpus.examples, modality, split)


def part_of(examples: Examples, modality: Modality, split: Split) -> Examples:
    """The training or the test split of a corpus, by a hash of the groups.

    What the test split has in common with the training split is left out of it. Where that leaves
    nothing, or there is one group only, it is said and the test is one in name only.
    """
    tested = choose_groups(examples.groups, TEST_SHARE, seed="test")
    if not tested.any():
        if split == "test":
            tell("a single file leaves nothing to hold out: the test is on what was trained on")
        return examples
    if split == "train":
        return examples.select(~tested)
    inside = examples.select(tested)
    mine = np.concatenate([*_prints(inside, modality)])
    known, seen = np.unique(mine), np.zeros(len(mine), bool)
    for theirs in _prints(examples.select(~tested), modality):
        at = np.searchsorted(known, theirs).clip(max=len(known) - 1)
        seen[at[known[at] == theirs]] = True
    unseen = ~seen[np.searchsorted(known, mine)]
    if not unseen.any():
        tell("all that was held out occurs in what is trained on too: it tells little of the model")
        return inside
    return inside.select(unseen)


def _prints(examples: Examples, modality: Modality) -> Iterator[Array]:
    """Numbers that are the same where the data type says that examples are, some at a time."""
    num = max(COMPARED // examples.columns.row_bytes, 1)
    for start in range(0, len(examples), num):
        y = examples.at(range(start, min(start + num, len(examples)))).y
        some = [blake2b(mine, digest_size=8).digest() for mine in modality.fingerprints(y)]
        yield np.frombuffer(b"".join(some), np.uint64)


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
    return part_of(Examples.stack(rows, length=modality.shape[0]), modality, split)


def read_corpus(
    roots: Sequence[Path],
    modality: Modality,
    *,
    group: Callable[[Any], str] | None = None,
    report: bool = True,
    processes: int | None = None,
) -> Corpus:
    """Reads every file of a data type below some folders, or finds it in the cache.

    Args:
        roots: files or folders.
        modality: what reads them.
        group: the key by which an item is split; None: its file. A function of a module of the
            data type's package, so that the cache knows its code.
        report: say which files were skipped even where the cache remembers it.
        processes: that read, from the beginning; None: one for each core, where it is worth it.

    Raises:
        Misuse: there is nothing of the kind.
        Failure: none of the files could be read, or what they hold cannot be written.
    """
    files = _Files([(root, _names(root, modality)) for root in roots])
    folder = _place(files, modality, group.__qualname__ if group else "")
    corpus = _load(folder) if folder else None
    if corpus is None:
        report = True
        corpus = _read(files, modality, group, folder, processes)
    where = ", ".join(map(str, roots))
    _tell(corpus.skipped if report else [], len(files), where)
    if not len(corpus.examples):
        reason = corpus.skipped[0].reason if corpus.skipped else "nothing was found in them"
        raise Failure(f"{where}: none of {len(files)} files could be read, {reason}")
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
        Misuse: a path is of nothing, or there is nothing of the kind in a folder.
        Failure: the only file, or every one of them, is broken; the sentence says why.
    """
    found = list_files(paths, modality)
    names: list[str] = []
    items: list[Any] = []
    skipped: list[Skipped] = []

    def read(file: Path) -> list[Any]:
        if not (mine := read_items(file, modality)):
            raise Failure(f"{file}: nothing was found in it")
        return mine

    for file, mine in read_each(found, read, skipped):
        items += mine
        names += (f"{file.stem}-{i:03}" if len(mine) > 1 else file.stem for i in range(len(mine)))
    return Reading(names, items, skipped, len(found))


def list_files(paths: Iterable[Path], modality: Modality) -> list[Path]:
    """Files as they are, and in the place of a folder all files of the data type below it.

    Raises:
        Misuse: a path is of nothing, or there is nothing of the kind in a folder.
    """
    found = [f for path in paths for f in (find_files(path, modality) if path.is_dir() else [path])]
    for file in found:
        if not file.exists():
            raise Misuse(f"{file}: there is no such file")
    return found


def read_each(
    files: Sequence[Path], read: Callable[[Path], T], skipped: list[Skipped]
) -> Iterator[tuple[Path, T]]:
    """Reads files one at a time; those that `read` refuses go to `skipped`.

    Raises:
        Failure: the only file, or every one of them, is broken; the sentence says why.
    """
    for file in files:
        try:
            found = read(file)
        except (Failure, Misuse) as error:
            if len(files) == 1:
                raise
            skipped.append(Skipped(str(file), str(error).removeprefix(f"{file}: ")))
        else:
            yield file, found
    if skipped and len(skipped) == len(files):
        first = skipped[0]
        raise Failure(
            f"none of {len(files)} files could be read; the first is {first.path}: {first.reason}"
        )


def find_files(root: Path, modality: Modality) -> list[Path]:
    """Every file below `root` whose ending the data type knows, sorted.

    Raises:
        Misuse: there is nothing at `root`, or nothing of the kind in it.
    """
    return [path for path, _ in _Files([(root, _names(root, modality))])]


class _Files(Sequence[File]):
    """The files below some roots; of a million of them, only the names."""

    def __init__(self, found: Sequence[tuple[Path, list[str]]]):
        self.found = [(r.parent if r.is_file() else r, names) for r, names in found]

    def __len__(self) -> int:
        return sum(len(names) for _, names in self.found)

    @overload
    def __getitem__(self, index: int) -> File: ...
    @overload
    def __getitem__(self, index: slice) -> list[File]: ...
    def __getitem__(self, index: int | slice) -> File | list[File]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        for root, names in self.found:
            if index < len(names):
                return File(root / names[index], names[index].replace(os.sep, "/"))
            index -= len(names)
        raise IndexError(index)


def _names(root: Path, modality: Modality) -> list[str]:
    """The names of the data type's files below a folder, sorted; of one file, its own.

    Raises:
        Misuse: there is nothing there, or nothing of the kind.
    """
    if not root.exists():
        raise Misuse(f"{root}: there is no such file or folder")
    if root.is_file():
        found, others = [root.name], 0
    else:
        found, others = [], 0
        for folder, _, names in os.walk(root):
            below = os.path.relpath(folder, root)
            for name in names:
                found.append(name if below == os.curdir else os.path.join(below, name))
    mine = [name for name in found if os.path.splitext(name)[1].lower() in modality.suffixes]
    if not root.is_file():
        mine = [name for name in mine if os.path.isfile(os.path.join(root, name))]
    if not mine:
        kinds, others = ", ".join(modality.suffixes), len(found)
        raise Misuse(f"{root}: there are no files that end in {kinds} ({others} others)")
    return sorted(mine, key=lambda name: name.split(os.sep))


def _read(
    files: Sequence[File],
    modality: Modality,
    group: Callable[[Any], str] | None,
    folder: Path | None,
    processes: int | None,
) -> Corpus:
    """Reads files into `folder`; where there can be none, into one that goes with this process."""
    work = folder.with_name(f"{folder.name}.parts") if folder else None
    temporary = None
    if work is None or not _can_write(work):
        temporary = Path(tempfile.mkdtemp(prefix="ae-corpus-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        folder, work = temporary / "corpus", temporary / "parts"
    assert folder is not None
    with at_work(work):
        corpus = _load(folder)  # another process may have been faster
        if corpus is None:
            skipped = ingest(
                files, modality, group=group, work=work, folder=folder, processes=processes
            )
            nothing = Examples(torch.empty(0), None, {}, [])
            corpus = _load(folder) or Corpus(nothing, skipped, None)
        shutil.rmtree(work, ignore_errors=True)
    if temporary and isinstance(corpus.examples.columns.y, torch.Tensor):
        shutil.rmtree(temporary, ignore_errors=True)
    return corpus._replace(folder=None) if temporary else corpus


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError:
        return False
    return True


def _place(files: Sequence[File], modality: Modality, grouped_by: str) -> Path | None:
    """Where the cache of these files is or would be; None: it cannot have one."""
    module = sys.modules[type(modality).__module__]
    settings = repr(sorted(vars(modality).items()))
    if not getattr(module, "__file__", None) or " at 0x" in settings:
        return None  # written in a notebook, or with settings that have no lasting name
    assert module.__file__ is not None
    key = blake2b(digest_size=16)
    kind = type(modality).__qualname__
    for word in (FORMAT, CONTRACT, __version__, kind, settings, grouped_by, *_readers(modality)):
        key.update(f"{word}\0".encode())
    sources = sorted(Path(module.__file__).parent.rglob("*.py"))
    mine = [File(path, path.name) for path in sources]
    for some in (mine, files):
        for file, digest in zip(some, digests(some), strict=True):
            key.update(as_bytes(f"{file.name}\0"))
            key.update(digest)
    return cache_root() / "corpora" / key.hexdigest()


def _readers(modality: Modality) -> Iterator[str]:
    """The versions of whatever the data type's distribution may read files by."""
    value = f"{type(modality).__module__}:{type(modality).__qualname__}"
    for _, origin, known in registry.modalities.origins():
        for line in (metadata.requires(origin.distribution) or []) if known == value else []:
            name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            try:
                yield f"{name} {metadata.version(name)}"
            except metadata.PackageNotFoundError:
                yield f"{name} absent"


def _load(folder: Path) -> Corpus | None:
    """Opens a cache, in memory where it is small; None where there is none, or a broken one."""
    try:
        rest = json.loads((folder / CACHED).read_text(encoding="utf-8"))
        if not isinstance(rest, dict) or not is_sealed(rest):
            return None
        sums = rest.get("checksums", {})

        def stored(name: str) -> Stored:
            return Stored(folder / name, sums.get(name, ""))

        y, groups, text, ends = map(stored, ("y.npy", "groups.npy", "names.npy", "ends.npy"))
        mask = stored("mask.npy") if (folder / "mask.npy").exists() else None
        labels = {name: stored(f"label_{i}.npy") for i, name in enumerate(rest["labels"])}
        skipped = [Skipped(*row) for row in rest["skipped"]]
        names: Sequence[str] = Names(text, ends)
        if text.row_bytes * len(text) <= COPIED:
            names = [*names]
        every = Groups(groups.span(0, len(groups)), names)
        sizes = {len(y), len(every), *map(len, labels.values()), len(y if mask is None else mask)}
        if len(sizes) > 1:
            return None
        examples = Examples(y, mask, labels, every)
        return Corpus(examples.to(CPU) if examples.nbytes <= COPIED else examples, skipped, folder)
    except (OSError, ValueError, KeyError, TypeError, EOFError, Failure):
        return None


def _tell(skipped: Sequence[Skipped], total: int, where: str, *, most: int = 10) -> None:
    if not skipped:
        return
    print(f"{where}: skipped {len(skipped)} of {total} files:", file=sys.stderr)
    for path, reason in skipped[:most]:
        print(f"  {path}: {reason}", file=sys.stderr)
    if len(skipped) > most:
        print(f"  … and {len(skipped) - most} more", file=sys.stderr)
