"""A run directory: whose it is, what is logged, which checkpoints stay, how a run is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ae_toolkit import __version__, checkpoint
from ae_toolkit.data import Examples
from ae_toolkit.errors import Failure, Misuse, said
from ae_toolkit.ranks import leads
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


NO_LOGS: Mapping[str, int] = {"metrics.jsonl": 0, "timings.jsonl": 0}  #: bytes in each


class Logs:
    """`metrics.jsonl`, which repeats exactly, and `timings.jsonl`, which does not.

    Args:
        run: the run directory.
        size: bytes that a resumed checkpoint knows of; whatever follows is cut off.
        waiting: lines that it holds, because they could not be written.

    Raises:
        Failure: they cannot be opened.
    """

    def __init__(
        self, run: Path, size: Mapping[str, int], waiting: Mapping[str, str] | None = None
    ):
        self.paths = {name: run / name for name in size}
        self.sizes, self.waiting = (
            dict(size),
            {name: (waiting or {}).get(name, "") for name in size},
        )
        for name, path in self.paths.items():
            try:
                with path.open("ab") as file:
                    self.sizes[name] = min(size[name], path.stat().st_size)
                    file.truncate(self.sizes[name])
            except OSError as error:
                raise Failure(f"{path}: cannot be written, {error.strerror or error}") from error

    def state(self) -> dict[str, Any]:
        """What a checkpoint must know of them."""
        return {"log_size": dict(self.sizes), "log_waiting": dict(self.waiting)}

    def write(
        self,
        step: int,
        epoch: float,
        learned: Mapping[str, float],
        validated: Mapping[str, Any] | None,
        seconds: float,
        speed: float,
    ) -> None:
        """Logs one look at a training: the terms on both splits, and how fast it went.

        Raises:
            Failure: they cannot be written; what is new waits in memory for the next time.
        """
        here = {"step": step, "epoch": round(epoch, 4)}
        metrics: list[Mapping[str, Any]] = [{**here, "split": "train", **learned}]
        if validated is not None:
            metrics.append({**here, "split": "validation", **validated})
        timing = {"seconds": round(seconds, 3), "examples_per_second": round(speed)}
        self.waiting["metrics.jsonl"] += "".join(json.dumps(row) + "\n" for row in metrics)
        self.waiting["timings.jsonl"] += json.dumps({**here, **timing}) + "\n"
        self.flush()

    def flush(self) -> None:
        """Writes what waits.

        Raises:
            Failure: as `write`.
        """
        for name, path in self.paths.items():
            text = self.waiting[name].encode()
            if not text:
                continue
            try:
                with path.open("r+b") as file:
                    file.truncate(self.sizes[name])  # half a line of an attempt that failed
                    file.seek(0, os.SEEK_END)
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())  # before a checkpoint counts these lines
            except OSError as error:
                raise Failure(f"{path}: cannot be written, {error.strerror or error}") from error
            self.sizes[name] += len(text)
            self.waiting[name] = ""


class Trouble:
    """What the disk refuses again and again: said once, and once more when it is over."""

    def __init__(self) -> None:
        self.met: set[str] = set()

    @contextmanager
    def survived(self, what: str, *, bar: tqdm[Any] | None = None) -> Iterator[None]:
        """Lets a block fail that writes something, since that must not end a training.

        Args:
            what: it writes.
            bar: of the progress.
        """
        try:
            yield
        except (Failure, OSError) as error:
            if what not in self.met:
                self.met.add(what)
                why = str(error)
                if isinstance(error, OSError) and error.filename:
                    why = f"{error.filename}: cannot be written, {error.strerror}"
                tell(f"{why}; the training goes on and will try again", bar=bar)
        else:
            if what in self.met:
                self.met.remove(what)
                tell(f"{what} can be written again", bar=bar)


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


class Signals:
    """Requests to stop, by Ctrl-C or SIGTERM.

    Attributes:
        caught: their numbers.
        patient: whether the first is only noted, so that a step is finished and saved.
    """

    def __init__(self) -> None:
        self.caught: list[int] = []
        self.patient = False


@contextmanager
def stop_signals() -> Iterator[Signals]:
    """Collects SIGINT and SIGTERM; a `KeyboardInterrupt` follows, unless the first may wait."""
    signals, owner = Signals(), os.getpid()
    before: dict[int, Any] = {}

    def catch(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a child of ours, which was born with our handlers
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        signals.caught.append(number)
        if signals.patient and len(signals.caught) == 1:
            return
        for each, former in before.items():  # whoever asks once more is not kept at all
            signal.signal(each, former)
        raise KeyboardInterrupt

    try:
        for kind in (signal.SIGINT, signal.SIGTERM):
            before[kind] = signal.signal(kind, catch)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield signals
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def tell(line: str, *, bar: tqdm[Any] | None = None) -> None:
    """Says something on standard error, above the progress bar if there is one; rank 0 only."""
    if not leads():
        return
    if bar is not None and not bar.disable:
        bar.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)
