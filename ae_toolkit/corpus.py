"""A folder of files as one memory-mapped array, read once.

What was read is kept in the user's cache, under a key of all that it depends on: the files' names
and contents, the data type's settings and the code of its package. Delete the cache whenever you
like; it is made again.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from tqdm import tqdm

from ae_toolkit import CONTRACT, __version__, checkpoint, registry
from ae_toolkit.contracts import Example
from ae_toolkit.data import Examples, Split, cache_root, choose_groups
from ae_toolkit.errors import Failure, Misuse
from ae_toolkit.modality import Modality, examples_of, read_items
from ae_toolkit.rundir import tell

FORMAT = 1

TEST_SHARE = 0.1  #: of the groups of a folder


class Skipped(NamedTuple):
    """A file that could not be read, by its name below the folder, and why."""

    path: str
    reason: str


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
    if not tested:
        if split == "test":
            tell("a single file leaves nothing to hold out: the test is on what was trained on")
        return examples
    inside = [i for i, group in enumerate(examples.groups) if group in tested]
    outside = [i for i, group in enumerate(examples.groups) if group not in tested]
    if split == "train":
        return examples.select(outside)
    known = {*modality.fingerprints(examples.y[torch.tensor(outside)])}
    prints = modality.fingerprints(examples.y[torch.tensor(inside)])
    unseen = [i for i, mine in zip(inside, prints, strict=True) if mine not in known]
    if not unseen:
        tell("all that was held out occurs in what is trained on too: it tells little of the model")
    return examples.select(unseen or inside)


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
) -> Corpus:
    """Reads every file of a data type below some folders, or finds it in the cache.

    Args:
        roots: files or folders.
        modality: what reads them.
        group: the key by which an item is split; None: its file. A function of a module of the
            data type's package, so that the cache knows its code.
        report: say which files were skipped even where the cache remembers it.

    Raises:
        Misuse: there is nothing of the kind.
        Failure: none of the files could be read.
    """
    files = [(file, _group(file, root)) for root in roots for file in find_files(root, modality)]
    folder = _place(files, modality, group.__qualname__ if group else "")
    corpus = _load(folder) if folder else None
    if corpus is None:
        report = True
        corpus = _read(files, modality, group)
        if folder and len(corpus.examples):
            corpus = _store(corpus, folder)
    where = ", ".join(map(str, roots))
    _tell(corpus.skipped if report else [], len(files), where)
    if not len(corpus.examples):
        reason = corpus.skipped[0].reason if corpus.skipped else "nothing was found in them"
        raise Failure(f"{where}: none of {len(files)} files could be read, {reason}")
    return corpus


def find_files(root: Path, modality: Modality) -> list[Path]:
    """Every file below `root` whose ending the data type knows, sorted.

    Raises:
        Misuse: there is nothing at `root`, or nothing of the kind in it.
    """
    if not root.exists():
        raise Misuse(f"{root}: there is no such file or folder")
    inside = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    found = [file for file in inside if file.suffix.lower() in modality.suffixes]
    if not found:
        kinds = ", ".join(modality.suffixes)
        raise Misuse(f"{root}: there are no files that end in {kinds} ({len(inside)} others)")
    return found


def _read(
    files: Sequence[tuple[Path, str]], modality: Modality, group: Callable[[Any], str] | None
) -> Corpus:
    skipped: list[Skipped] = []
    rows = list(_examples(files, modality, group, skipped))
    if not rows:
        return Corpus(Examples(torch.empty(0), None, {}, []), skipped, None)
    return Corpus(Examples.stack(rows, length=modality.shape[0]), skipped, None)


def _examples(
    files: Iterable[tuple[Path, str]],
    modality: Modality,
    group: Callable[[Any], str] | None,
    skipped: list[Skipped],
) -> Iterator[Example]:
    """Every example of every readable file; the files that fail are added to `skipped`."""
    bar = tqdm(files, desc="reading", unit=" files", delay=1, disable=None, leave=False)
    for file, name in bar:
        mine: list[Example] = []
        try:
            for item in read_items(file, modality):
                key = group(item) if group else name
                found = examples_of(item, modality, training=True)
                mine += [Example(y, labels, key) for y, labels, _ in found]
        except (Failure, Misuse, OSError) as error:
            skipped.append(Skipped(name, str(error).removeprefix(f"{file}: ")))
            continue
        yield from mine


def _place(files: Sequence[tuple[Path, str]], modality: Modality, grouped_by: str) -> Path | None:
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
    sources = sorted(Path(module.__file__).parent.glob("*.py"))
    for file, name in (*((path, path.name) for path in sources), *files):
        key.update(f"{name}\0".encode())
        try:
            key.update(blake2b(file.read_bytes()).digest())
        except OSError as error:
            key.update(str(error.strerror).encode())
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


def _store(corpus: Corpus, folder: Path) -> Corpus:
    """Writes a corpus and opens what was written; where it cannot be written, none is kept."""
    examples = corpus.examples
    try:
        with checkpoint.writing(folder, folder=True) as temporary:
            np.save(temporary / "y.npy", examples.y.numpy())
            if examples.mask is not None:
                np.save(temporary / "mask.npy", examples.mask.numpy())
            labels: dict[str, Any] = {name: c.numpy() for name, c in examples.labels.items()}
            np.savez(temporary / "labels.npz", **labels)
            rest = {"groups": examples.groups, "skipped": corpus.skipped}
            (temporary / "rest.json").write_text(json.dumps(rest), encoding="utf-8")
    except Failure:
        return corpus
    return _load(folder) or corpus


def _load(folder: Path) -> Corpus | None:
    """Opens a cache, memory-mapped; None where there is none, or a broken one."""
    try:
        rest = json.loads((folder / "rest.json").read_text(encoding="utf-8"))
        y = _tensor(folder / "y.npy")
        mask = _tensor(folder / "mask.npy") if (folder / "mask.npy").exists() else None
        with np.load(folder / "labels.npz") as columns:
            labels = {name: torch.from_numpy(columns[name]) for name in columns.files}
        skipped = [Skipped(*row) for row in rest["skipped"]]
        groups = list(rest["groups"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return None
    sizes = {len(y), len(groups), *map(len, labels.values()), len(y if mask is None else mask)}
    if len(sizes) > 1:
        return None
    return Corpus(Examples(y, mask, labels, groups), skipped, folder)


def _tensor(path: Path) -> Any:
    # Copy-on-write, since PyTorch knows no read-only memory: nothing is ever written back.
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _group(file: Path, root: Path) -> str:
    return file.name if file == root else file.relative_to(root).as_posix()


def _tell(skipped: Sequence[Skipped], total: int, where: str, *, most: int = 10) -> None:
    if not skipped:
        return
    print(f"{where}: skipped {len(skipped)} of {total} files:", file=sys.stderr)
    for path, reason in skipped[:most]:
        print(f"  {path}: {reason}", file=sys.stderr)
    if len(skipped) > most:
        print(f"  … and {len(skipped) - most} more", file=sys.stderr)
