"""A run directory: whose it is, what a training goes on from, which checkpoints stay."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ae_toolkit import __version__, checkpoint
from ae_toolkit.console import tell
from ae_toolkit.data import Examples
from ae_toolkit.errors import Failure, Misuse, said
from ae_toolkit.recipe import Recipe
from ae_toolkit.runs import leaves

HOW = {"train.compile", "train.parallel"}  #: how a run is worked on, not what it is


def claim(run: Path, recipe: Recipe, *, resume: bool, begun: bool = False) -> None:
    """Makes sure that `run` holds this recipe's run, or none.

    Args:
        run: the run directory.
        recipe: what is to be trained.
        resume: whether a run is expected.
        begun: whether an empty folder will do, as a training leaves that was killed at its start.

    Raises:
        Misuse: it does not.
    """
    config = run / checkpoint.CONFIG
    if not resume:
        if config.exists() or (run / "checkpoints").exists():
            raise Misuse(
                f"{run} already holds a run: add --resume to go on, or choose another --out"
            )
        return
    if not config.exists():
        if begun and all(path.name.startswith(".") for path in run.iterdir()):
            return
        raise Misuse(f"{run} holds no run to resume")
    former, mine = (
        dict(leaves(each.model_dump(mode="json")))
        for each in (checkpoint.load_config(run).recipe, recipe)
    )
    # The recipe's own name says most, where it is another one.
    keys = sorted({*former, *mine} - HOW, key=lambda key: (key != "name", key))
    differ = [key for key in keys if former.get(key) != mine.get(key)]
    if differ:
        named = [f"its {key} is {former.get(key)!r}, not {mine.get(key)!r}" for key in differ[:3]]
        more = f" (and {len(differ) - 3} more differ)" if len(differ) > 3 else ""
        raise Misuse(f"{run} holds another run: {', '.join(named)}{more}")


BROKEN = ".broken"  #: the ending of a checkpoint that was set aside

#: What the training state of a checkpoint holds.
KEYS = ("step", "watch", "log_size", "log_waiting", "data", "learner", "history")


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint; sets aside broken ones, and says so.

    Raises:
        Failure: all are broken, or another version wrote it.
    """
    broken: list[tuple[Path, Failure]] = []
    for _, folder in reversed(checkpoint.folders(run)):
        try:
            by = checkpoint.written_by(folder)
            checkpoint.load_weights(folder)
            state = checkpoint.load_state(folder)
        except Failure as error:
            broken.append((folder, error))
            continue
        if missing := [key for key in KEYS if key not in state]:
            raise Failure(
                f"{folder}: was written by {by}, and this is "
                f"ae-toolkit {__version__}, which misses {missing[0]!r} in it: go on with the "
                f"version that began this run, or begin another"
            )
        for former, reason in broken:
            tell(f"{reason}; trying the one before")
            # Out of the way of what will be saved; `tidy` removes it when there is a newer one.
            aside = former.with_name(f".{former.name}{BROKEN}")
            shutil.rmtree(aside, ignore_errors=True)
            former.rename(aside)
        tell(f"resuming from {folder}")
        return folder
    if broken:
        raise Failure(f"{run}: no checkpoint can be resumed from, {broken[0][1]}")
    tell(f"{run} has no checkpoint yet: starting from the beginning")
    return None


@contextmanager
def restoring(run: Path) -> Iterator[None]:
    """Says that a training state does not fit, where it is put back.

    Raises:
        Failure: so it is.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, (Failure, Misuse)):
            raise
        raise Failure(
            f"{run}: its last checkpoint does not fit what its recipe builds now ({said(error)}): "
            f"go on with the versions that began this run, or begin another"
        ) from error


def fingerprint(examples: Examples, held_out: Examples) -> dict[str, Any]:
    """What is remembered of the data of a training."""
    digests = [part.digest() for part in (examples, held_out) if len(part)]
    return {"num": len(examples) + len(held_out), "digest": "-".join(digests)}


def check_data(state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Makes sure that a training goes on with the data that it began with.

    Args:
        state: of a checkpoint.
        now: the `fingerprint` of the data.

    Raises:
        Failure: it has changed.
    """
    before = state["data"]
    if before["digest"] != now["digest"]:
        raise Failure(
            f"the data has changed since this run began ({before['num']:,} examples then, "
            f"{now['num']:,} now): put it back as it was, or begin another run"
        )


def tidy(run: Path, *, keep: int) -> None:
    """Removes all checkpoints but the best and the last few, and what was left half-written."""
    sweep(run, broken=True)
    points = checkpoint.checkpoints(run)
    kept = {point.folder for point in points[-keep:]}
    if best := checkpoint.best(run):
        kept.add(best.folder)
    for point in points:
        if point.folder not in kept:
            # What is half removed must not look like a checkpoint.
            doomed = point.folder.with_name(f".{point.folder.name}")
            point.folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def sweep(run: Path, *, broken: bool = False) -> None:
    """Removes what a training that was killed has left half-written or half removed.

    Args:
        run: the run directory.
        broken: remove checkpoints too that were set aside.
    """
    for pattern in ("checkpoints/.step_*", "figures/.step_*", ".*.json.*"):
        for left in run.glob(pattern):
            if broken or left.suffix != BROKEN:
                shutil.rmtree(left, ignore_errors=True)
