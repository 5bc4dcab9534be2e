"""The checkpoint that a training goes on from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ae_toolkit.console import log
from ae_toolkit.errors import RunError, UsageError, describe_error
from ae_toolkit.runs import checkpoint
from ae_toolkit.runs.directory import BROKEN_SUFFIX
from ae_toolkit.training.state import OtherVersionError, TrainState


def find_resumable(run: Path) -> Path | None:
    """Returns the newest whole checkpoint of a run; sets aside broken ones, and says so.

    Raises:
        RunError: all of them are broken, or another version wrote it.
    """
    broken: list[tuple[Path, RunError]] = []
    for _, folder in reversed(checkpoint.folders(run)):
        try:
            checkpoint.written_by(folder)
            checkpoint.load_weights(folder)
            TrainState.load(folder)
        except OtherVersionError:
            raise
        except RunError as error:
            broken.append((folder, error))
            continue
        for former, reason in broken:
            log(f"{reason}; trying the one before")
            # Out of the way of what will be saved; `tidy` removes it when there is a newer one.
            aside = former.with_name(f".{former.name}{BROKEN_SUFFIX}")
            shutil.rmtree(aside, ignore_errors=True)
            former.rename(aside)
        log(f"resuming from {folder}")
        return folder
    if broken:
        raise RunError(f"{run}: no checkpoint can be resumed from, {broken[0][1]}")
    log(f"{run} has no checkpoint yet: starting from the beginning")
    return None


@contextmanager
def wrap_misfit_errors(run: Path) -> Iterator[None]:
    """Turns what does not fit, where a training state is put back, into a sentence.

    Raises:
        RunError: the block failed because of the state.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, (RunError, UsageError)):
            raise
        raise RunError(
            f"{run}: its last checkpoint does not fit what its recipe builds now "
            f"({describe_error(error)}): go on with the versions that began this run, or begin "
            f"another"
        ) from error
