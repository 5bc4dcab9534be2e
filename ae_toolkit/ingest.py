"""Many files, read by many processes: what was read stays read, whatever happens.

This process begins alone, since a few files are read sooner than a process has started. Then every
process reads a part at a time, in the order of the files. One that crashes in a file is replaced,
and the file is skipped; where others cannot import the data type, as it was written in a notebook,
this process reads everything.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch

from ae_toolkit import registry
from ae_toolkit.console import Bar, tell
from ae_toolkit.errors import Failure, Fault, said
from ae_toolkit.modality import Modality, describe
from ae_toolkit.parts import PART_SECONDS, File, Joining, Reader, Skipped, write_part

ALONE_SECONDS = 2.0  #: that this process reads alone
WORTH_SECONDS = 10.0  #: of reading, as far as it can be seen, that other processes are started for
KILLED = 3  #: times that a process may be killed from outside in a file before that is to blame

COMMAND = (sys.executable, "-P", "-c", "from ae_toolkit.ingest import serve; serve()")


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
        processes: that read, from the beginning; None: one for each core, where it is worth it.

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

        # Where an earlier reading ended early, a file may have ended it: not this process again.
        if not before and processes is None:
            _alone(joining.reader, todo, files, done, seconds=ALONE_SECONDS)
        if (num := min(processes or _num_cores(), len(todo))) > 1 or (num and before):
            _together(joining.reader, todo, files, done, num)
        _alone(joining.reader, todo, files, done)
    return joining.finish(folder)


def _alone(
    reader: Reader,
    todo: deque[range],
    files: Sequence[File],
    done: Callable[[int, int], None],
    *,
    seconds: float | None = None,
) -> None:
    """Reads in this process: everything, or as long as it is not worth starting others."""
    began, num = time.monotonic(), 0
    while todo:
        spent = time.monotonic() - began
        left = sum(map(len, todo)) * spent / max(num, 1)
        if seconds is not None and spent >= seconds and left > WORTH_SECONDS:
            return
        some = todo.popleft()
        with _one_thread():
            read = write_part(
                reader,
                [files[i] for i in some],
                some.start,
                crashed={},
                before=lambda _: None,
                seconds=seconds or PART_SECONDS,
            )
        done(some.start, read)
        num += read
        if read < len(some):
            todo.appendleft(some[read:])


def _together(
    reader: Reader,
    todo: deque[range],
    files: Sequence[File],
    done: Callable[[int, int], None],
    num: int,
) -> None:
    """Reads in other processes; what they cannot read, as they cannot import it, is left."""
    header = _header(reader)
    if header is None:
        return
    events: SimpleQueue[Any] = SimpleQueue()
    tenders = [_Tender(header, todo, files, events) for _ in range(num)]
    try:
        for tender in tenders:
            tender.start()
        while tenders:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, _Tender):
                tenders.remove(event)
            else:
                done(*event)
    finally:
        for tender in tenders:
            tender.stop()


class _Tender(Thread):
    """Keeps one process at work, and says of each part that it was read, at last itself.

    Args:
        header: what the process has to know.
        todo: parts that nobody reads yet.
        files: all of them.
        events: where it is said.
    """

    def __init__(
        self,
        header: bytes,
        todo: deque[range],
        files: Sequence[File],
        events: SimpleQueue[Any],
    ):
        super().__init__(daemon=True)
        self.header, self.todo, self.files, self.events = header, todo, files, events
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def run(self) -> None:
        try:
            while not self.stopped and self.todo:
                try:
                    some = self.todo.popleft()
                except IndexError:  # another one was faster
                    break
                if rest := self._read(some):
                    self.todo.appendleft(rest)
                    break
            self._end()
            self.events.put(self)
        except BaseException as error:
            self.events.put(error)

    def stop(self) -> None:
        """Ends the process at once, and the thread with it."""
        self.stopped = True
        if self.process:
            self.process.kill()
        self.join()
        self._end()

    def _read(self, some: range) -> range:
        """Has some files read; returns those for which no process can be had that is fit."""
        crashed: dict[int, str] = {}
        kills: dict[int, int] = {}
        while some and not self.stopped:
            if self.process is None and not self._begin():
                break
            at = some.start
            try:
                self._send((some.start, [self.files[i] for i in some], crashed))
                while (event := self._receive())[0] == "file":
                    at = event[1]
            except (OSError, EOFError, pickle.UnpicklingError):
                why, killed = self._end()
                kills[at] = kills.get(at, 0) + 1
                if not killed or kills[at] == KILLED:
                    crashed[at] = why
                continue
            if event[0] != "part":
                raise (Fault if event[0] == "fault" else Failure)(event[1])
            self.events.put((some.start, event[1]))
            some = some[event[1] :]
        return some

    def _begin(self) -> bool:
        """Starts a process and returns whether it is fit to read."""
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        try:
            self.process = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            assert self.process.stdin is not None
            self.process.stdin.write(self.header)
            self.process.stdin.flush()
            fit = self._receive()[0] == "ready"
        except (OSError, EOFError, pickle.UnpicklingError):
            fit = False
        if not fit:
            self._end()
        return fit

    def _send(self, what: object) -> None:
        assert self.process is not None and self.process.stdin is not None
        pickle.dump(what, self.process.stdin)
        self.process.stdin.flush()

    def _receive(self) -> Any:
        assert self.process is not None
        return pickle.load(self.process.stdout)  # type: ignore[arg-type]  # it is a pipe

    def _end(self) -> tuple[str, bool]:
        """Waits until the process has ended; says how, and whether somebody else ended it."""
        process, self.process = self.process, None
        if process is None:
            return "", False
        with process, suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        code = process.returncode
        names = {-number: number.name for number in signal.Signals}
        how = names.get(code, f"exit code {code}")
        return f"the process that read it crashed ({how})", how in ("SIGKILL", "SIGTERM")


def _header(reader: Reader) -> bytes | None:
    """What a process must know to read; None: it could not import it."""
    names = {type(reader.modality).__module__, getattr(reader.group, "__module__", __name__)}
    try:
        places = {name: find_spec(name) for name in names - {"__main__"}}
        if "__main__" in names or not all(places.values()):
            return None
        origins = {name: spec.origin for name, spec in places.items() if spec}
        # Without the name that the data type goes by here, others would say another reason why a
        # file is skipped.
        return pickle.dumps(origins) + pickle.dumps((reader, describe(reader.modality)))
    except Exception:  # settings of any kind, modules of any kind
        return None


def serve() -> None:
    """Reads parts for another process, as `_Tender` asks for them, until that hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks is interrupted, and hangs up
    asked, told = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # whatever the data type prints
    torch.set_num_threads(1)

    def say(*what: object) -> None:
        pickle.dump(what, told)
        told.flush()

    with suppress(BrokenPipeError, EOFError):
        try:
            origins: Mapping[str, str] = pickle.load(asked)
            reader, label = pickle.load(asked)
            for name, origin in origins.items():
                assert sys.modules[name].__file__ == origin, f"{name} is not {origin}"
        except Exception as error:
            return say("unfit", said(error))
        registry.modalities._loaded[label] = type(reader.modality)
        say("ready")
        while True:
            first, files, crashed = pickle.load(asked)
            try:
                num = write_part(
                    reader, files, first, crashed=crashed, before=lambda i: say("file", i)
                )
            except Failure as error:
                say("fault" if isinstance(error, Fault) else "failure", str(error))
            except Exception as error:
                traceback.print_exc()
                say("failure", said(error))
            else:
                say("part", num)


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
