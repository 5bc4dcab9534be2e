"""What a training is at a moment: in memory `Training`, in a checkpoint `TrainState`.

`TrainState` alone knows what a checkpoint holds beside a model's weights; every field of it is
checked before it is used, since it may come from anybody.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pydantic
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.data.examples import Examples, need_finite
from ae_toolkit.errors import RunError
from ae_toolkit.recipe import describe_invalid
from ae_toolkit.runs import checkpoint
from ae_toolkit.runs.logs import LOG_NAMES, LogName, Logs
from ae_toolkit.training.optimizer import whole_state
from ae_toolkit.training.retries import Retries
from ae_toolkit.training.schedule import Watch
from ae_toolkit.training.setup import Setup
from ae_toolkit.training.step import TERM_NAMES
from ae_toolkit.training.validation import Validation
from ae_toolkit.version import __version__

Whole = Annotated[int, Field(ge=0, lt=2**63)]


def _need_plain(tensor: Tensor) -> Tensor:
    """Refuses what only looks like numbers in memory."""
    if type(tensor) is not Tensor or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise ValueError("it should be a plain tensor")
    return tensor


Plain = Annotated[Tensor, AfterValidator(_need_plain)]


def _need_lines(text: str) -> str:
    """Refuses what is no part of a log."""
    for line in text.encode().splitlines():
        json.loads(line)
    return text


Lines = Annotated[str, AfterValidator(_need_lines)]


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", arbitrary_types_allowed=True
    )


class Fingerprint(_Strict):
    """What is remembered of the data of a training: how many examples, and a digest of them."""

    num: Whole
    digest: str


class OptimizerState(_Strict):
    """What `EMAOptimizer.state_dict` holds."""

    weights: dict[str, Plain]
    average: list[Plain]
    first: list[Plain]
    second: list[Plain]


class TrainState(_Strict):
    """What the training state of a checkpoint holds, beside the weights that a model is made of.

    Attributes:
        step: how many were taken.
        watch: the best validation, and how many have passed since.
        log_size: bytes of each log that are the run's.
        log_waiting: lines that could not be written yet.
        data: that it was trained on.
        learner: weights, averages and moments of the optimiser.
        history: the rows since the last validation, `(step % evaluate_every, len(TERMS))`.
    """

    step: Whole
    watch: tuple[Annotated[float, Field(ge=-math.inf)], Whole]
    log_size: Annotated[dict[LogName, Whole], Field(min_length=len(LOG_NAMES))]
    log_waiting: Annotated[dict[LogName, Lines], Field(min_length=len(LOG_NAMES))]
    data: Fingerprint
    learner: OptimizerState
    history: Plain

    @classmethod
    def load(cls, folder: Path) -> TrainState:
        """Reads and checks the training state of a checkpoint.

        Raises:
            RunError: it is missing or broken, or of another version.
        """
        state = checkpoint.load_state(folder)
        try:
            found = cls.model_validate(state)
            if folder.name != checkpoint.step_name(found.step):
                raise RunError(
                    f"{folder / checkpoint.STATE_FILE}: is of step {found.step:,}, in the folder "
                    f"of another; begin another run"
                )
            return found
        except pydantic.ValidationError as error:
            raise OtherVersionError(
                f"{folder / checkpoint.STATE_FILE}: was written by "
                f"{checkpoint.written_by(folder)}, and this is ae-toolkit "
                f"{__version__}, to which it is no training state "
                f"({describe_invalid(error, cls)}): go on with the version that began this run, or "
                f"begin another"
            ) from None


class Report(NamedTuple):
    """What came of the steps between two validations.

    Attributes:
        epoch: how many were done.
        train: means of `TERM_NAMES` over the steps.
        validation: what held-out examples say; None where there are none.
        seconds: since this process began to train.
        examples_per_second: in training, what else was done not counted.
    """

    epoch: float
    train: Mapping[str, float]
    validation: Validation | None
    seconds: float
    examples_per_second: float


@dataclass
class Training:
    """A training that goes on: what callbacks are given.

    Attributes:
        setup: what it works with.
        run: the run directory.
        step: how many steps were taken.
        watch: the best validation, and how many have passed since.
        history: rows of `TERM_NAMES`, `(evaluate_every, 4)` on the device; row
            `step % evaluate_every` is the next one's.
        logs: what is written into the run directory; None where another rank writes.
        retries: survives what the disk refuses.
        losses: rows of `TERM_NAMES` of the steps since they were looked at last, the latest last.
        examples_per_second: of those steps.
        report: of the latest validation.
        is_stopping: whether somebody has asked for it.
        is_overdue: whether a checkpoint is.
        saved_at: when the latest was written, by the clock of this process.
        is_saved: whether that went well.
    """

    setup: Setup
    run: Path
    data: Fingerprint
    history: Tensor
    step: int = 0
    watch: Watch = field(default_factory=Watch)
    logs: Logs | None = None
    retries: Retries = field(default_factory=Retries)
    losses: Sequence[Sequence[float]] = ()
    examples_per_second: float = 0.0
    report: Report | None = None
    is_stopping: bool = False
    is_overdue: bool = False
    saved_at: float = field(default_factory=time.perf_counter)
    is_saved: bool = True

    @classmethod
    def begin(cls, setup: Setup, run: Path) -> Training:
        """Returns a training before its first step."""
        history = torch.zeros(setup.schedule.evaluate_every, len(TERM_NAMES), device=setup.device)
        return cls(setup, run, fingerprint(setup.examples, setup.held_out), history)

    @property
    def epoch(self) -> float:
        """How many epochs are done."""
        return self.step / self.setup.schedule.per_epoch

    @property
    def is_finished(self) -> bool:
        """Whether all steps are taken, or no better validation has come for too long."""
        train = self.setup.train
        return self.step >= self.setup.schedule.steps or self.watch.over(train.patience)

    @property
    def is_validating(self) -> bool:
        """Whether a validation follows the latest step."""
        schedule = self.setup.schedule
        return self.step % schedule.evaluate_every == 0 or self.step == schedule.steps

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that writes."""
        return self.setup.ranks.is_main_process

    def state_dict(self) -> dict[str, Any]:
        """Returns what `TrainState` holds; every rank must ask, and only rank 0's is whole."""
        logs = self.logs.state() if self.logs else {}
        return {
            "step": self.step,
            "watch": tuple(self.watch),
            "data": self.data.model_dump(),
            "learner": self.setup.optimizer.state_dict(keep=self.is_main_process),
            "history": self.history[: self.step % len(self.history)].clone(),
            **logs,
        }

    def load_state_dict(self, state: TrainState, *, former_epochs: float) -> None:
        """Goes on from a checkpoint.

        Args:
            state: of the checkpoint.
            former_epochs: how many the training was to have when it was written.

        Raises:
            UsageError: more epochs are done than the training is to have.
            RunError: the data has changed since.
            ValueError: the state does not fit what the recipe builds now.
        """
        check_data(state.data, self.data)
        former = self.setup.schedule.lasting(former_epochs)
        if not state.history.isfinite().all():
            raise ValueError("its history is not finite")
        if any(bool((moment < 0).any()) for moment in state.learner.second):
            raise ValueError("a second moment is negative")
        if state.step > former.steps:
            raise ValueError(f"it is at step {state.step:,} of {former.steps:,}")
        rows = state.step % former.evaluate_every
        if state.history.shape != (rows, len(TERM_NAMES)) or state.history.dtype != torch.float32:
            shape = tuple(state.history.shape)
            raise ValueError(f"its history is {shape}, not {(rows, len(TERM_NAMES))}")
        self.setup.optimizer.load_state_dict(dict(state.learner), step=state.step)
        self.step, self.watch = state.step, Watch(*state.watch)
        self.history[:rows] = state.history.to(self.history.device)

    def ema_model(self) -> Autoencoder | None:
        """Returns the averaged model, whole, on rank 0; None on others. Every rank must ask."""
        setup = self.setup
        averaged = setup.optimizer.ema_model()
        if not setup.ranks.shards(setup.train):
            assert isinstance(averaged, Autoencoder)
            return averaged if self.is_main_process else None
        weights = whole_state(averaged, keep=self.is_main_process)
        if not self.is_main_process:
            return None
        model = Autoencoder(setup.recipe, modality=setup.modality)
        model.load_state_dict(weights)
        return model.eval()

    def check_finite(self, first: int) -> None:
        """Stops a training at the step, and in the term, in which it diverged.

        Args:
            first: the number of steps before `losses`.

        Raises:
            RunError: a loss is not finite; the sentence says whether the data is to blame.
        """
        for number, row in enumerate(self.losses, start=first + 1):
            # The loss is the sum of the others: a part of it is the better clue.
            for name, value in sorted(
                zip(TERM_NAMES, row, strict=True), key=lambda t: t[0] == "loss"
            ):
                if not math.isfinite(value):
                    need_finite(self.setup.examples, self.setup.modality)
                    point = checkpoint.best(self.run)
                    kept = (
                        f"the last good checkpoint is {point.folder}" if point else "none was saved"
                    )
                    raise RunError(
                        f"the training diverged at step {number}: the {name} is {value}; {kept}; "
                        f"try a smaller train.lr, or train.clip=1"
                    )


class OtherVersionError(RunError):
    """A training state that is whole, but not of this version."""


def fingerprint(examples: Examples, held_out: Examples) -> Fingerprint:
    """What is remembered of the data of a training."""
    digests = [part.digest() for part in (examples, held_out) if len(part)]
    return Fingerprint(num=len(examples) + len(held_out), digest="-".join(digests))


def check_data(before: Fingerprint, now: Fingerprint) -> None:
    """Makes sure that a training goes on with the data that it began with.

    Args:
        before: of a checkpoint.
        now: of the data.

    Raises:
        RunError: it has changed.
    """
    if before.digest != now.digest:
        raise RunError(
            f"the data has changed since this run began ({before.num:,} examples then, "
            f"{now.num:,} now): put it back as it was, or begin another run"
        )
