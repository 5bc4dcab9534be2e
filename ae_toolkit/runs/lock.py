"""One training at a time in a run directory: a lock that the system lets go of, come what may."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ae_toolkit.errors import Failure, Misuse

SECONDS = 2.0  #: that a process which was killed just now, or one that only looks, may take to go
OPENED = os.name != "nt"  #: whether folders can be


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keeps a second training out of a run directory for the length of a block.

    The system lets go of the lock when a process ends, however it ends. Where folders cannot be
    opened, as on Windows, there is none.

    Raises:
        Misuse: another process trains there.
        Failure: there can be no such folder.
    """
    new = [path for path in (run, *run.parents) if not path.exists()]
    folder = None
    try:
        if OPENED:
            folder = _open_locked(run)
        else:
            run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"{run}: cannot be written, {error.strerror or error}") from error
    if OPENED and folder is None:
        raise Misuse(
            f"{run} is being trained by another process: wait for it, stop it, or choose "
            f"another --out"
        )
    try:
        yield
    finally:
        with suppress(OSError):  # where nothing came of it
            for empty in (run, *(path for path in new if path != run)):
                empty.rmdir()
        if folder is not None:
            os.close(folder)


def _open_locked(run: Path) -> int | None:
    """Opens the folder, made where it is missing, with the lock; None: another process has it."""
    ends = time.monotonic() + SECONDS
    while True:
        run.mkdir(parents=True, exist_ok=True)
        try:
            folder = os.open(run, os.O_RDONLY)
            if take(folder):
                # The one who had it may have removed the folder, and somebody made another.
                if os.path.samestat(os.fstat(folder), os.stat(run)):
                    return folder
            elif time.monotonic() > ends:
                os.close(folder)
                return None
            os.close(folder)
        except FileNotFoundError:
            pass
        time.sleep(0.05)


def in_training(run: Path) -> bool:
    """Whether some process trains in a run directory, on this machine."""
    if not OPENED:
        return False
    try:
        folder = os.open(run, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not take(folder)
    finally:
        os.close(folder)


def take(opened: int) -> bool:
    """Whether the lock of an open file or folder is ours now, or there are no locks here."""
    try:
        import fcntl

        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True
