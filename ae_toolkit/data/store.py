"""A folder of files as a store of shards, each read by a process of its own.

Reading fills the gaps between shards, so it goes on wherever it was ended, and makes a damaged
shard anew. A process reads one shard and ends. Where it crashes or hangs, the file that it was in
is skipped and another process reads the rest. On Linux processes are copies of this one, which
begin within milliseconds and know a data type that was written in a notebook. Elsewhere they begin
anew; what they cannot import, this process reads.
"""

from __future__ import annotations

import math
import os
import pickle
import shutil
import signal
import sys
import warnings
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock, Timeout

from ae_toolkit.console import Bar, log
from ae_toolkit.data import shards
from ae_toolkit.data.columns import ArrayFile, DamagedShard
from ae_toolkit.data.examples import CPU_DEVICE, MAX_COPY_BYTES, Examples
from ae_toolkit.data.shards import File, Reader, Shard, Skipped, find_gaps, find_shards, write_shard
from ae_toolkit.errors import RunError, describe_error
from ae_toolkit.modality import Modality

PROCESS_CONTEXT: Any = get_context("fork" if sys.platform == "linux" else "spawn")

ITEM_SECONDS = 60  #: that a parser may take over one item, where the system has alarms
KILLED_EXIT_CODES = (-9, -15)  #: of a process that somebody else may have killed
MAX_KILLS = 3  #: of processes in a file before that is to blame
MAX_READINGS = 3  #: of a store that turns out to be damaged each time


def read_store(
    files: Sequence[File], reader: Reader, *, processes: int | None = None
) -> tuple[Examples, list[Skipped]]:
    """Opens a store, in memory where it is small, after reading the files that it lacks.

    Args:
        files: in the order of the examples.
        reader: how they are read, and into which folder.
        processes: that read at once; None: one for each core.

    Raises:
        RunError: what the files hold cannot be written, or does not fit together.
        OSError: the folder cannot be made, or not be locked.
    """
    for _ in range(MAX_READINGS):
        found = find_shards(reader.store)
        if not find_gaps(found, len(files)):
            with suppress(DamagedShard):
                return _open(found, reader.modality), [
                    Skipped(*s) for each in found for s in each.skipped
                ]
        reader.store.mkdir(parents=True, exist_ok=True)
        with _lock(reader.store):
            _fill(files, reader, processes or _num_cores())
    raise RunError(f"{reader.store}: was removed or damaged while it was in use: run it again")


def _open(found: Sequence[Shard], modality: Modality) -> Examples:
    """Makes a data set of shards.

    Raises:
        DamagedShard: A shard turns out not to be whole.
        RunError: shards hold tensors of several kinds.
    """
    filled = [shard for shard in found if shard.groups]
    if not filled:
        return Examples(torch.empty(0), None, {}, [])
    if len({(shard.dtype, *shard.labels) for shard in filled}) > 1:
        raise shards.several_kinds(modality)

    def stored(name: str) -> ArrayFile:
        sums = [shard.checksums.get(name, "") for shard in filled]
        return ArrayFile(*(shard.folder / name for shard in filled), checksums=sums)

    mask = None if all(shard.is_full for shard in filled) else stored("mask.npy")
    labels = {name: stored(f"label_{i}.npy") for i, name in enumerate(filled[0].labels)}
    runs = [run for shard in filled for run in shard.groups]
    groups = [name for name, num in runs for _ in range(num)]
    examples = Examples(stored("y.npy"), mask, labels, groups)
    return examples.to(CPU_DEVICE) if examples.nbytes <= MAX_COPY_BYTES else examples


def _fill(files: Sequence[File], reader: Reader, num: int) -> None:
    """Reads the files that a store lacks, in `num` processes at once.

    Raises:
        RunError: what they hold cannot be written, or does not fit together.
    """
    found = find_shards(reader.store)
    for left in {*reader.store.iterdir()} - {shard.folder for shard in found}:
        if left.is_dir():  # cut short, damaged, or overlapping
            shutil.rmtree(left, ignore_errors=True)
    todo = deque(find_gaps(found, len(files)))
    done = len(files) - sum(map(len, todo))
    if todo and done:
        log(f"{done:,} of {len(files):,} files were read before: going on from there")
    running: dict[Any, _Process] = {}  # by what is ready when they have ended
    crashed: dict[int, str] = {}  # number of a file -> what became of the process that read it
    kills: Counter[int] = Counter()
    with Bar("reading files", total=len(files), done=done, unit="files") as bar:
        try:
            while todo or running:
                while todo and len(running) < num:
                    share = math.ceil(sum(map(len, todo)) / (num - len(running)))
                    try:
                        some = todo[0][: min(share, shards.SHARD_FILES)]
                        process = _Process(reader, some, files, crashed)
                    except Exception:  # settings that cannot be pickled, no more processes, …
                        num = 0
                        break
                    running[process.process.sentinel] = process
                    _drop(todo, len(some))
                if not running:  # no process can begin, so this one reads
                    _drop(todo, _read_here(reader, todo[0], files, crashed))
                for sentinel in wait(list(running), None if running else 0):
                    process = running.pop(sentinel)
                    some, at, rests = process.some, process.position.value, [process.some]
                    if (read := process.result()) is not None:
                        rests = [some[read:]]
                    elif at < 0:  # it could not begin; nor will another one
                        num = 0
                    else:  # should more files crash it, what lies before is not read once more
                        rests = [range(some.start, at + 1), range(at + 1, some.stop)]
                        was_killed = process.process.exitcode in KILLED_EXIT_CODES
                        kills[at] += was_killed
                        if not was_killed or kills[at] == MAX_KILLS:
                            crashed[at] = process.why()
                    todo.extendleft(filter(None, reversed(rests)))
                left_over = [*todo, *(process.some for process in running.values())]
                bar.update(len(files) - sum(map(len, left_over)))
        finally:
            for process in running.values():
                process.process.kill()
                process.process.join()


def _drop(todo: deque[range], num: int) -> None:
    first = todo.popleft()
    if first[num:]:
        todo.appendleft(first[num:])


class _Process:
    """A process that reads some files into a shard and ends.

    Attributes:
        some: the numbers of the files.
        position: the number of the file that it reads; -1: it has not begun.

    Raises:
        Exception: it cannot be started; of what kind depends on why.
    """

    def __init__(
        self, reader: Reader, some: range, files: Sequence[File], crashed: Mapping[int, str]
    ):
        is_copy = PROCESS_CONTEXT.get_start_method() == "fork"
        work = (reader, files[some.start : some.stop], some.start, dict(crashed))
        self.some, self.position = some, PROCESS_CONTEXT.RawValue("q", -1)
        self.ours, theirs = PROCESS_CONTEXT.Pipe(duplex=False)
        given = (theirs, self.position, work if is_copy else pickle.dumps(work))
        self.process = PROCESS_CONTEXT.Process(target=_serve, args=given)
        main = sys.modules["__main__"]
        try:
            if not is_copy:  # else it would run the user's script again
                sys.modules["__main__"] = ModuleType("__main__")
            with warnings.catch_warnings():  # that copies of processes with threads are risky
                warnings.simplefilter("ignore", DeprecationWarning)
                self.process.start()
        finally:
            sys.modules["__main__"] = main
            theirs.close()

    def result(self) -> int | None:
        """Returns how many files it has read once it has ended; None: it crashed.

        Raises:
            RunError: what they hold cannot be written, or does not fit together.
        """
        answer: int | RunError | None = None
        self.process.join()
        with self.ours, suppress(EOFError, OSError, pickle.UnpicklingError):
            answer = self.ours.recv() if self.ours.poll() else None
        if isinstance(answer, RunError):
            raise answer
        return answer

    def why(self) -> str:
        """Says how it crashed."""
        code = self.process.exitcode
        names = {-number: number.name for number in signal.Signals}
        if names.get(code) == "SIGALRM":
            return f"the process that read it hung for {ITEM_SECONDS} seconds"
        return f"the process that read it crashed ({names.get(code, f'exit code {code}')})"


def _serve(theirs: Connection, position: Any, work: tuple[Any, ...] | bytes) -> None:
    """Reads files for another process, and sends it how many, or a `RunError`.

    Args:
        theirs: the connection to that process.
        position: is kept at the number of the file that is read.
        work: what `write_shard` takes, perhaps pickled.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks is interrupted, and says so
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)  # whatever the data type prints …
    # … goes neither into a bar on the screen, nor to a lock that another thread held.
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, errors="replace", closefd=False)
    torch.set_num_threads(1)
    try:
        reader, files, first, crashed = pickle.loads(work) if isinstance(work, bytes) else work
    except Exception:
        return
    parent = parent_process()

    def watch(number: int) -> None:
        if parent is not None and os.getppid() != parent.pid:
            os._exit(1)  # nobody waits for it any more
        position.value = number
        if sys.platform != "win32":  # the system ends this process, whatever it does
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(ITEM_SECONDS)

    answer: int | RunError
    try:
        answer = write_shard(reader, files, first, crashed=crashed, watch=watch)
    except Exception as error:
        answer = error if isinstance(error, RunError) else RunError(describe_error(error))
    with suppress(OSError):
        theirs.send(answer)


def _read_here(
    reader: Reader, some: range, files: Sequence[File], crashed: Mapping[int, str]
) -> int:
    """Reads files in this process, by one thread: what is read does not depend on their number."""
    before, mine = torch.get_num_threads(), files[some.start : some.stop]
    torch.set_num_threads(1)
    try:
        return write_shard(reader, mine, some.start, crashed=crashed, watch=lambda _: None)
    finally:
        torch.set_num_threads(before)


def _lock(store: Path) -> AbstractContextManager[Any]:
    """Waits until no other process reads into a store.

    Raises:
        OSError: it cannot be locked.
    """
    lock = FileLock(store / "lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        log("another process is reading these files: waiting for it")
        return lock.acquire()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
