"""Where the numbers of a training go beside `metrics.jsonl`: TensorBoard, Weights & Biases, yours.

    ae train RECIPE --track tensorboard --track wandb

A tracker is a class that fits `contracts.Tracker`, found like any other part by an entry point in
the group `ae_toolkit.trackers`, or registered by `@registry.trackers.register("mine")`. What it
needs is imported when it is made, so that it is missed before any work; it writes nothing before it
is first told of something.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ae_toolkit import registry
from ae_toolkit.console import log
from ae_toolkit.contracts import Callback, Tracker
from ae_toolkit.errors import UsageError, describe_error, wrap_plugin_errors
from ae_toolkit.training.callbacks.figures import figure_path
from ae_toolkit.training.state import Training

MOST_RATES = 64  #: code dimensions whose rates are told of one by one
FINISH_SECONDS = 60  #: how long the end of a training waits for an upload


class Trackers(Callback):
    """Any number of trackers as one. One that fails is spoken of once, then left alone.

    Args:
        names: of registered trackers.
        run: the run directory.
        settings: of the recipe, for the record.

    Raises:
        UsageError: there is no such tracker, or what it needs is not installed.
        RunError: its class raises something else.
    """

    def __init__(self, names: Iterable[str], *, run: Path, settings: Mapping[str, Any]):
        self.open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            make = registry.trackers.get(name)
            with wrap_plugin_errors(f"{registry.trackers.describe(make)} raises"):
                self.open[name] = make(run=run, settings=settings)

    def on_validation(self, training: Training) -> None:
        report, figure = training.report, figure_path(training)
        if not self.open or report is None:
            return
        if figure.is_file():
            self._each("figure", training.step, figure)
        row = report.validation.row if report.validation else {}
        pace = {"examples_per_second": report.examples_per_second}
        self.log(training.step, train=report.train, validation=row, pace=pace)

    def log(self, step: int, **rows: Mapping[str, Any]) -> None:
        """Tells every tracker rows of numbers, `validation/loss`, `rates/00` and so on."""
        flat: dict[str, float] = {}
        for split, row in rows.items():
            for name, value in row.items():
                if isinstance(value, (int, float)):
                    flat[f"{split}/{name}"] = value
                elif len(value) <= MOST_RATES:
                    flat |= {f"{name}/{i:02}": number for i, number in enumerate(value)}
        self._each("log", step, flat)

    def close(self) -> None:
        """Ends all of them, whatever ended the training."""
        self._each("close")

    def _each(self, method: str, *arguments: Any) -> None:
        for name, tracker in [*self.open.items()]:
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # a network, a full disk, a stranger's code
                del self.open[name]
                why = describe_error(error)
                log(f"{name} fails and is told nothing more of this training: {why}")


class TensorBoard:
    """Files under `runs/NAME/tensorboard`; see them by `tensorboard --logdir runs`."""

    def __init__(self, *, run: Path, settings: Mapping[str, Any]):
        self.writer_class = _import("torch.utils.tensorboard", extra="tensorboard").SummaryWriter
        self.folder = run / "tensorboard"
        self.writer: Any = None

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        writer = self._from(step)
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def figure(self, step: int, path: Path) -> None:
        from matplotlib.pyplot import imread

        self._from(step).add_image("figure", imread(path), step, dataformats="HWC")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _from(self, step: int) -> Any:
        # What a killed run wrote of this step and of later ones is taken back.
        if self.writer is None:
            self.writer = self.writer_class(str(self.folder), purge_step=step)
        return self.writer


class WandB:
    """A run at Weights & Biases, of the project that `WANDB_PROJECT` says, else `ae-toolkit`.

    It goes on under the same id when a training is resumed. Steps that it knows already it drops,
    which loses nothing, since a resumed training repeats them exactly.
    """

    def __init__(self, *, run: Path, settings: Mapping[str, Any]):
        self.wandb = _import("wandb", extra="wandb")
        online = os.environ.get("WANDB_MODE", "online") == "online"
        if online and not self.wandb.login(prompt=False, verify=False):
            raise UsageError(
                "tracker 'wandb': nobody is logged in; call 'wandb login', or set "
                "WANDB_MODE=offline and upload later by 'wandb sync'"
            )
        self.folder, self.settings = run, settings

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def figure(self, step: int, path: Path) -> None:
        self.run.log({"figure": self.wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        if "run" in vars(self):
            self.run.finish()

    @cached_property
    def run(self) -> Any:
        """The run, which begins when it is first told of something."""
        known = self.folder / "wandb" / "id.txt"
        if not known.is_file():
            known.parent.mkdir(exist_ok=True)
            known.write_text(secrets.token_hex(4), encoding="utf-8")
        run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ae-toolkit"),
            name=self.folder.name,
            id=known.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(self.folder),
            config=dict(self.settings),
            settings=self.wandb.Settings(silent=True, console="off", finish_timeout=FINISH_SECONDS),
        )
        if run.url:
            log(f"wandb: {run.url}")
        return run


def _import(module: str, *, extra: str) -> Any:
    """Returns the module that a tracker needs.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(
            f"tracker {extra!r} needs a package that is not installed: "
            f"pip install 'ae-toolkit[{extra}]'"
        ) from None
