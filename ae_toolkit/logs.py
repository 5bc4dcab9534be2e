"""What a run directory logs: a resumed training repeats no line and loses none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ae_toolkit.errors import Failure

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
