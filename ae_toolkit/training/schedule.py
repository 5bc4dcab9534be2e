"""How long a training is, how fast it goes at each step, and when it has gone on for too long."""

from __future__ import annotations

import math
from typing import NamedTuple

from ae_toolkit.console import log
from ae_toolkit.errors import UsageError
from ae_toolkit.recipe import Train


class Schedule(NamedTuple):
    """How many steps of how many examples, and how far each may go."""

    steps: int  #: of the optimiser, in all
    batches: int  #: per epoch; what does not fill a batch waits for the next epoch's shuffle
    batch_size: int  #: examples per batch, never more than there are
    per_step: int  #: examples per optimiser step
    per_epoch: float  #: optimiser steps per epoch
    evaluate_every: int  #: steps between validations
    shape: str  #: of the learning rate, as the setting `schedule` names it
    warmup: float  #: share of the steps in which it rises

    @classmethod
    def of(cls, train: Train, num_examples: int, *, num_ranks: int = 1) -> Schedule:
        """Reads the settings for some examples.

        Raises:
            UsageError: there are fewer examples than ranks.
        """
        batch_size = min(train.batch_size, num_examples) // num_ranks * num_ranks
        if not batch_size:
            raise UsageError(f"{num_ranks} ranks cannot share {num_examples} examples")
        batches = num_examples // batch_size
        per_epoch = batches / train.accumulate
        return cls(
            steps=_steps(train.epochs, per_epoch),
            batches=batches,
            batch_size=batch_size,
            per_step=batch_size * train.accumulate,
            per_epoch=per_epoch,
            evaluate_every=max(round(train.evaluate_every * per_epoch), 1),
            shape=train.schedule,
            warmup=train.warmup,
        )

    def lasting(self, epochs: float) -> Schedule:
        """The same for another number of epochs."""
        return self._replace(steps=_steps(epochs, self.per_epoch))

    def factor(self, step: int) -> float:
        """The learning rate at a step, as a share of its peak.

        `cosine` rises linearly and falls to 0; `one-cycle` (Smith 2018) rises and falls along
        cosines, with a warm-up of 0.3 in the paper; `constant` only rises.
        """
        warm = self.warmup * self.steps
        if step < warm:
            rise = (step + 1) / (warm + 1)
            return 0.5 - 0.5 * math.cos(math.pi * rise) if self.shape == "one-cycle" else rise
        if self.shape == "constant":
            return 1.0
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(self.steps - warm, 1))

    def check_length(self, former: Train, train: Train, step: int) -> None:
        """Says what follows from a training that goes on with other settings than its former ones.

        Raises:
            UsageError: more epochs are done than it is to have.
        """
        if step > self.steps:
            raise UsageError(
                f"train.epochs={train.epochs:g} is less than this run has done, which is "
                f"{step / self.per_epoch:.4g}: leave it out, or begin another run"
            )
        if former.epochs == train.epochs:
            return
        before = self.lasting(former.epochs)
        log(
            f"train.epochs was {former.epochs:g} and is {train.epochs:g}: the learning rate goes "
            f"on at {train.lr * self.factor(step):.2g}, where it had come to "
            f"{former.lr * before.factor(max(step - 1, 0)):.2g}, and warm-ups move along; a run "
            f"that has {train.epochs:g} epochs from its start ends elsewhere"
        )


def _steps(epochs: float, per_epoch: float) -> int:
    return max(round(epochs * per_epoch), 1)


class Watch(NamedTuple):
    """The best validation so far, and how many have passed without a better one."""

    best: float = math.inf
    stale: int = 0

    def after(self, loss: float) -> Watch:
        return Watch(loss, 0) if loss < self.best else Watch(self.best, self.stale + 1)

    def over(self, patience: int) -> bool:
        return bool(patience) and self.stale >= patience
