"""What a checkpoint knows of a training beside its weights, and where a training goes on."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import pydantic
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from ae_toolkit.console import tell
from ae_toolkit.data.examples import Examples
from ae_toolkit.errors import Failure, Misuse, said
from ae_toolkit.recipe import complaint
from ae_toolkit.runs import checkpoint
from ae_toolkit.runs.directory import BROKEN
from ae_toolkit.runs.logs import LOG_NAMES, LogName
from ae_toolkit.training.schedule import Schedule
from ae_toolkit.version import __version__

Whole = Annotated[int, Field(ge=0, lt=2**63)]


def _need_plain(tensor: Tensor) -> Tensor:
    """Refuses what only looks like numbers in memory."""
    if type(tensor) is not Tensor or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise ValueError("it should be a plain tensor")
    return tensor


Plain = Annotated[Tensor, AfterValidator(_need_plain)]


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", arbitrary_types_allowed=True
    )


class Fingerprint(_Strict):
    """What is remembered of the data of a training."""

    num: Whole
    digest: str


class LearnerState(_Strict):
    """What `Learner.state_dict` holds."""

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
        learner: weights, averages and moments.
        history: the rows since the last validation, `(step % evaluate_every, len(TERMS))`.
    """

    step: Whole
    watch: tuple[Annotated[float, Field(ge=-math.inf)], Whole]
    log_size: Annotated[dict[LogName, Whole], Field(min_length=len(LOG_NAMES))]
    log_waiting: Annotated[dict[LogName, str], Field(min_length=len(LOG_NAMES))]
    data: Fingerprint
    learner: LearnerState
    history: Plain

    @classmethod
    def load(cls, folder: Path) -> TrainState:
        """Reads and checks the training state of a checkpoint.

        Raises:
            Failure: it is missing or broken, or of another version.
        """
        state = checkpoint.load_state(folder)
        try:
            return cls.model_validate(state)
        except pydantic.ValidationError as error:
            raise _Foreign(
                f"{folder / checkpoint.STATE}: was written by {checkpoint.written_by(folder)}, and "
                f"this is ae-toolkit {__version__}, to which it is no training state "
                f"({complaint(error, cls)}): go on with the version that began this run, or begin "
                f"another"
            ) from None

    def need_fit(self, schedule: Schedule, *, like: Tensor) -> None:
        """Makes sure that a training can go on from here.

        Args:
            schedule: of the training.
            like: its history.

        Raises:
            ValueError: it cannot.
        """
        if self.step > schedule.steps:
            raise ValueError(f"it is at step {self.step:,} of {schedule.steps:,}")
        shape = (self.step % schedule.evaluate_every, *like.shape[1:])
        if self.history.shape != shape or self.history.dtype != like.dtype:
            raise ValueError(f"its history is {tuple(self.history.shape)}, not {shape}")


class _Foreign(Failure):
    """A training state that is whole, but not of this version."""


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint; sets aside broken ones, and says so.

    Raises:
        Failure: all are broken, or another version wrote it.
    """
    broken: list[tuple[Path, Failure]] = []
    for _, folder in reversed(checkpoint.folders(run)):
        try:
            checkpoint.written_by(folder)
            checkpoint.load_weights(folder)
            TrainState.load(folder)
        except _Foreign:
            raise
        except Failure as error:
            broken.append((folder, error))
            continue
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
        Failure: it has changed.
    """
    if before.digest != now.digest:
        raise Failure(
            f"the data has changed since this run began ({before.num:,} examples then, "
            f"{now.num:,} now): put it back as it was, or begin another run"
        )
