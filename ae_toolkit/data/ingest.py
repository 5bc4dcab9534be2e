"""Many files, read by other processes: what was read stays read, whatever happens.

Every process reads a part at a time, in the order of the files. One that crashes or hangs in a file
is replaced, and the file is skipped. On Linux they are copies of this process, as PyTorch's data
loaders have them: they begin within milliseconds, and know a data type that was written in a
notebook. Elsewhere they begin anew; what they cannot import, this process reads.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ae_toolkit import registry
from ae_toolkit.console import Bar, tell
from ae_toolkit.data.shards import File, Joining, Reader, Skipped, write_part
from ae_toolkit.errors import Failure, Fault, said
from ae_toolkit.modality import Modality, describe

ITEM_SECONDS = 60  #: that a parser may take over one item, where the system has alarms
END_SECONDS = 10  #: that a process may take to end
MAX_KILLS = 3  #: times that a process may be killed from outside in a file before that is to blame

CONTEXT: Any = get_context("fork" if sys.platform == "linux" else "spawn")


def ingest(
    files: Sequence[File],
    modality: Modality,
    *,
    group: Callable[[Any], str] | None,
    work: Path,
    folder: Path,
    processes: int | None = None,
) -> list[Skipped]:
    """Reads files into the corpus `folder` and returns which were skipped.

    Args:
        files: in order.
        modality: what reads them.
        group: the key by which an item is split; None: its file.
        work: the folder for what is half done; what an earlier reading left there is gone on from.
        folder: does not come into being where no file holds an example.
        processes: that read; None: one for each core.

    Raises:
        Failure: the disk is full, or what the data type makes does not fit together.
    """
    joining = Joining(Reader(modality, group, work), len(files))
    todo, before = deque(joining.gaps()), sum(p.stop - p.first for p in joining.parts())
    if before:
        tell(f"{before:,} of {len(files):,} files were read before: going on from there")
    with Bar("reading files", total=len(files), done=before, unit="files") as bar:

        def done(first: int, num: int) -> None:
            joining.add(first, num)
            joining.move()
            bar.advance(num)

        crashed: dict[int, str] = {}
        _together(joining.reader, todo, files, done, crashed, processes or _num_cores())
        _alone(joining.reader, todo, files, done, crashed)
    return joining.finish(folder)


def _together(
    reader: Reader,
    todo: deque[range],
    files: Sequence[File],
    done: Callable[[int, int], None],
    crashed: dict[int, str],
    num: int,
) -> None:
    """Reads in `num` other processes; leaves in `todo` what they cannot read.

    Args:
        reader: how.
        todo: parts that nobody has read yet.
        files: all of them.
        done: is told of each part that was read: its first file, and how many.
        crashed: number of a file -> what became of the process that read it.
        num: of processes.
    """
    workers: dict[Any, _Worker] = {}  # by the connection to them
    kills: Counter[int] = Counter()
    try:
        while True:
            while todo and len(workers) < num:
                try:
                    worker = _Worker(reader)
                except Exception:  # settings that cannot be pickled, no more processes, and so on
                    num = 0
                    break
                workers[worker.connection] = worker
                worker.give(todo.popleft(), files, crashed)
            if not workers:
                return
            for connection in wait(list(workers)):
                worker = workers[connection]
                match worker.receive():
                    case "ready", _:
                        worker.ready = True
                    case "file", at:
                        worker.at = at
                    case "part", read:
                        done(worker.some.start, read)
                        if rest := worker.some[read:]:
                            todo.appendleft(rest)
                        if todo:
                            worker.give(todo.popleft(), files, crashed)
                        else:
                            workers.pop(connection).end()
                    case "fault", sentence:
                        raise Fault(sentence)
                    case "failure", sentence:
                        raise Failure(sentence)
                    case _:
                        why, killed = workers.pop(connection).end()
                        some, at = worker.some, worker.at
                        if not worker.ready:  # nor will another one be
                            num = 0
                            todo.appendleft(some)
                            continue
                        kills[at] += 1
                        if not killed or kills[at] == MAX_KILLS:
                            crashed[at] = why
                        # Should more of them crash it, what lies before is not read once more.
                        rests = range(some.start, at + 1), range(at + 1, some.stop)
                        todo.extendleft(rest for rest in reversed(rests) if rest)
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.end()


class _Worker:
    """A process that reads.

    Attributes:
        ready: whether it knows what it needs.
        some: the files that it was given last.
        at: which of them it reads.

    Raises:
        Exception: it cannot be started; of what kind depends on why.
    """

    def __init__(self, reader: Reader):
        copied = CONTEXT.get_start_method() == "fork"
        known = reader if copied else pickle.dumps(reader)
        self.ready, self.some, self.at = False, range(0), 0
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(
            target=_serve, args=(theirs, known, describe(reader.modality))
        )
        main = sys.modules["__main__"]
        try:
            if not copied:  # else it would run the user's script again
                sys.modules["__main__"] = ModuleType("__main__")
            with warnings.catch_warnings():  # that copies of processes with threads are risky
                warnings.simplefilter("ignore", DeprecationWarning)
                self.process.start()
        finally:
            sys.modules["__main__"] = main
            theirs.close()

    def give(self, some: range, files: Sequence[File], crashed: dict[int, str]) -> None:
        self.some, self.at = some, some.start
        with suppress(OSError):  # it has ended, and `receive` will say so
            self.connection.send((some.start, [files[i] for i in some], crashed))

    def receive(self) -> Any:
        """What it says; None: it has ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            return None

    def end(self) -> tuple[str, bool]:
        """Waits until it has ended; says how, and whether somebody else ended it."""
        with suppress(OSError):
            self.connection.send(None)
        self.connection.close()
        self.process.join(END_SECONDS)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        names = {-number: number.name for number in signal.Signals}
        how = names.get(code, f"exit code {code}")
        if how == "SIGALRM":
            return f"the process that read it hung for {ITEM_SECONDS} seconds", False
        return f"the process that read it crashed ({how})", how in ("SIGKILL", "SIGTERM")


def _serve(connection: Connection, known: Reader | bytes, label: str) -> None:
    """Reads parts for another process until that says None or ends.

    Args:
        connection: to that.
        known: what to read by, perhaps pickled.
        label: the name that the data type goes by there; else others would say another reason why a
            file is skipped.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks is interrupted, and says so
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)  # whatever the data type prints
    torch.set_num_threads(1)
    try:
        reader = pickle.loads(known) if isinstance(known, bytes) else known
    except Exception:
        return
    registry.modalities._loaded[label] = type(reader.modality)
    at, parent = -1, parent_process()
    assert parent is not None

    def watch(i: int | None) -> None:
        nonlocal at
        _alarm(0 if i is None else ITEM_SECONDS)
        if i is not None and i != at:
            at = i
            connection.send(("file", i))

    with suppress(EOFError, OSError):
        connection.send(("ready", None))
        # A copy holds the other end of its connection too, and so does not see that it was closed.
        while connection in wait([connection, parent.sentinel]) and (task := connection.recv()):
            first, files, crashed = task
            try:
                num = write_part(reader, files, first, crashed=crashed, watch=watch)
            except Failure as error:
                connection.send(("fault" if isinstance(error, Fault) else "failure", str(error)))
            except Exception as error:
                traceback.print_exc()
                connection.send(("failure", said(error)))
            else:
                connection.send(("part", num))


def _alarm(seconds: int) -> None:
    """Lets the system end this process after so many seconds, whatever it does; 0: no more."""
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)


def _alone(
    reader: Reader,
    todo: deque[range],
    files: Sequence[File],
    done: Callable[[int, int], None],
    crashed: dict[int, str],
) -> None:
    """Reads in this process what no other one could."""
    while todo:
        some = todo.popleft()
        with _one_thread():
            mine = [files[i] for i in some]
            read = write_part(reader, mine, some.start, crashed=crashed, watch=lambda _: None)
        done(some.start, read)
        if read < len(some):
            todo.appendleft(some[read:])


@contextmanager
def at_work(work: Path) -> Iterator[None]:
    """Makes a folder, and waits until no other process is at work in it.

    Raises:
        OSError: it cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        work.mkdir(parents=True, exist_ok=True)
        yield
        return
    while True:
        work.mkdir(parents=True, exist_ok=True)
        with (work / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell("another process is reading these files: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                ours = os.path.samestat((work / "lock").stat(), os.fstat(lock.fileno()))
            except FileNotFoundError:  # who was done has removed the folder
                ours = False
            if ours:
                yield
                return


@contextmanager
def _one_thread() -> Iterator[None]:
    """What is read does not depend on how many threads, and so processes, read it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
