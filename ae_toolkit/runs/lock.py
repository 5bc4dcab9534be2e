"""One training at a time in a run directory: a lock that the system lets go of, come what may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ae_toolkit.errors import RunError, UsageError

LOCK_FILE = ".lock"  #: the file in a run directory that is locked; it goes with the training
WAIT_SECONDS = 2.0  #: that a process which was killed just now, or only looks, may take to go


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keeps a second training out of a run directory for the length of a block.

    The system lets go of the lock when a process ends, however it ends.

    Raises:
        UsageError: another process trains there.
        RunError: there can be no such folder, or nobody may write there.
    """
    new = [path for path in (run, *run.parents) if not path.exists()]
    lock = FileLock(run / LOCK_FILE, WAIT_SECONDS, mode=0o666)
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"{run} is being trained by another process: wait for it, stop it, or choose "
            f"another --out"
        ) from None
    except OSError as error:
        raise RunError(f"{run}: cannot be written, {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            (run / LOCK_FILE).unlink()  # whoever waits for this very file sees that it is gone
        lock.release()
        with suppress(OSError):  # where nothing came of it
            for empty in (run, *(path for path in new if path != run)):
                empty.rmdir()


def is_locked(path: Path) -> bool:
    """Returns whether some process holds the lock of a file, as far as this one may know."""
    try:
        if path.exists():
            with FileLock(path, blocking=False):
                pass
    except Timeout:
        return True
    except OSError:
        pass
    return False


def in_training(run: Path) -> bool:
    """Returns whether some process trains in a run directory, on this machine."""
    return is_locked(run / LOCK_FILE)
