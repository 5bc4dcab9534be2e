"""One training at a time in a run directory: a lock that the system lets go of, come what may."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ae_toolkit.errors import Failure, Misuse


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keeps a second training out of a run directory for the length of a block.

    The system lets go of the lock when a process ends, however it ends.

    Raises:
        Misuse: another process trains there.
        Failure: there can be no such folder.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        folder = os.open(run, os.O_RDONLY)
    except OSError as error:
        raise Failure(f"{run}: cannot be written, {error.strerror or error}") from error
    try:
        if not _lock(folder):
            raise Misuse(
                f"{run} is being trained by another process: wait for it, stop it, or choose "
                f"another --out"
            )
        yield
    finally:
        with suppress(OSError):
            run.rmdir()  # where nothing came of it
        os.close(folder)


def in_training(run: Path) -> bool:
    """Whether some process trains in a run directory, on this machine."""
    try:
        folder = os.open(run, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _lock(folder)
    finally:
        os.close(folder)


def _lock(folder: int) -> bool:
    """Whether the lock is ours now, or there are no locks on this system or file system."""
    try:
        import fcntl

        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True
