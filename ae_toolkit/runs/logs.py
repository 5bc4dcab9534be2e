"""What a run directory logs: a resumed training repeats no line and loses none."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from ae_toolkit.errors import RunError

LogName = Literal["metrics.jsonl", "timings.jsonl"]

LOG_NAMES: tuple[LogName, ...] = ("metrics.jsonl", "timings.jsonl")


class Logs:
    """`metrics.jsonl`, which repeats exactly, and `timings.jsonl`, which does not.

    Args:
        run: the run directory.
        sizes: bytes of each that a resumed checkpoint knows of; whatever follows is cut off.
        waiting: lines that it holds, because they could not be written.

    Raises:
        RunError: they cannot be opened, or are no regular files of the run directory.
    """

    def __init__(self, run: Path, sizes: Mapping[LogName, int], waiting: Mapping[LogName, str]):
        self.paths = {name: run / name for name in LOG_NAMES}
        self.sizes = {name: sizes.get(name, 0) for name in LOG_NAMES}
        self.waiting = {name: waiting.get(name, "") for name in LOG_NAMES}
        for name, path in self.paths.items():
            with _writing(path) as file:
                self.sizes[name] = min(self.sizes[name], os.fstat(file.fileno()).st_size)
                file.truncate(self.sizes[name])

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
            RunError: they cannot be written; what is new waits in memory for the next time.
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
        """Writes what waits; it raises what `write` does."""
        for name, path in self.paths.items():
            text = self.waiting[name].encode()
            if not text:
                continue
            with _writing(path) as file:
                file.truncate(self.sizes[name])  # half a line of an attempt that failed
                file.seek(0, os.SEEK_END)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # before a checkpoint counts these lines
            self.sizes[name] += len(text)
            self.waiting[name] = ""


@contextmanager
def _writing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a log, which is a file of the run directory and no link to another one."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        opened = os.open(path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            os.close(opened)
            raise RunError(f"{path}: cannot be written, it is no regular file")
        with os.fdopen(opened, "r+b") as file:
            yield file
    except OSError as error:
        reason = "it is a link" if path.is_symlink() else error.strerror or error
        raise RunError(f"{path}: cannot be written, {reason}") from error
