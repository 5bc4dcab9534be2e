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

from ae_toolkit import checkpoint
from ae_toolkit.data import Examples
from ae_toolkit.errors import Failure, Misuse
from ae_toolkit.recipe import Recipe


def claim(run: Path, recipe: Recipe, *, resume: bool) -> None:
    """Makes sure that `run` holds this recipe's run, or none."""
    config = run / checkpoint.CONFIG
    if not resume:
        if config.exists() or (run / "checkpoints").exists():
            raise Misuse(
                f"{run} already holds a run: add --resume to go on, or choose another --out"
            )
        return
    if not config.exists():
        raise Misuse(f"{run} holds no run to resume")
    former = _leaves(checkpoint.load_config(run).recipe.model_dump())
    mine = _leaves(recipe.model_dump())
    for key in sorted({*former, *mine}):
        if former.get(key) != mine.get(key):
            raise Misuse(
                f"{run} holds another run: its {key} is {former.get(key)!r}, not {mine.get(key)!r}"
            )


NO_LOGS: Mapping[str, int] = {"metrics.jsonl": 0, "timings.jsonl": 0}  #: bytes in each


class Logs:
    """`metrics.jsonl`, which repeats exactly, and `timings.jsonl`, which does not.

    Args:
        run: the run directory.
        size: bytes that a resumed checkpoint knows of; whatever follows is cut off.
    """

    def __init__(self, run: Path, size: Mapping[str, int]):
        self.paths = {name: run / name for name in size}
        self.sizes, self.waiting = dict(size), dict.fromkeys(size, "")
        for name, path in self.paths.items():
            with path.open("ab") as file:
                self.sizes[name] = min(size[name], path.stat().st_size)
                file.truncate(self.sizes[name])

    def size(self) -> dict[str, int]:
        """Bytes in each."""
        return dict(self.sizes)

    def write(
        self,
        step: int,
        epoch: float,
        learned: Mapping[str, float],
        validated: Mapping[str, Any] | None,
        seconds: float,
        speed: float,
    ) -> None:
        """Logs one look at a training: the terms on both splits, and how fast it went."""
        here = {"step": step, "epoch": round(epoch, 4)}
        self._append("metrics.jsonl", {**here, "split": "train", **learned})
        if validated is not None:
            self._append("metrics.jsonl", {**here, "split": "validation", **validated})
        timing = {"seconds": round(seconds, 3), "examples_per_second": round(speed)}
        self._append("timings.jsonl", {**here, **timing})

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds a line; on a full disk it waits in memory for the next."""
        self.waiting[name] += json.dumps(row) + "\n"
        text = self.waiting[name].encode()
        try:
            with self.paths[name].open("r+b") as file:
                file.truncate(self.sizes[name])  # half a line of an attempt that failed
                file.seek(0, os.SEEK_END)
                file.write(text)
        except OSError as error:
            tell(f"{self.paths[name]}: cannot be written, {error.strerror or error}; trying later")
            return
        self.sizes[name] += len(text)
        self.waiting[name] = ""


def last_state(run: Path) -> dict[str, Any] | None:
    """The state of the newest whole checkpoint; says which broken ones it passed over."""
    broken: Failure | None = None
    for point in reversed(checkpoint.checkpoints(run)):
        try:
            state = checkpoint.load_state(point.folder)
        except Failure as error:
            broken = error
            tell(f"{error}; trying the one before")
            continue
        tell(f"resuming from {point.folder}")
        return state
    if broken:
        raise Failure(f"{run}: no checkpoint can be resumed from, {broken}")
    tell(f"{run} has no checkpoint yet: starting from the beginning")
    return None


def check_data(state: Mapping[str, Any], examples: Examples) -> None:
    """Makes sure that a training goes on with the data that it began with.

    Raises:
        Failure: it has changed.
    """
    before = state["data"]
    if before["digest"] != examples.digest():
        raise Failure(
            f"the data has changed since this run began ({before['num']:,} examples then, "
            f"{len(examples):,} now): put it back as it was, or begin another run"
        )


def tidy(run: Path, *, keep: int) -> None:
    """Removes all checkpoints but the best and the last few, and what was left half-written."""
    points = checkpoint.checkpoints(run)
    kept = {point.folder for point in points[-keep:]}
    if best := checkpoint.best(run):
        kept.add(best.folder)
    for point in points:
        if point.folder not in kept:
            point.folder.rename(point.folder.with_name(f".{point.folder.name}"))
    for doomed in run.glob("checkpoints/.step_*"):
        shutil.rmtree(doomed, ignore_errors=True)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that a step is finished first; a second one is not kept."""
    caught: list[int] = []

    def catch(number: int, frame: object) -> None:
        caught.append(number)
        for each, former in before.items():
            signal.signal(each, former)

    before: dict[int, Any] = {}
    try:
        for kind in (signal.SIGINT, signal.SIGTERM):
            before[kind] = signal.signal(kind, catch)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield caught
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = list(value) if isinstance(value, tuple) else value
    return leaves


def tell(line: str, *, bar: tqdm[Any] | None = None) -> None:
    """Says something on standard error, above the progress bar if there is one; rank 0 only."""
    if os.environ.get("RANK", "0") != "0":
        return
    if bar is not None and not bar.disable:
        bar.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)
