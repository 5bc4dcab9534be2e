"""Losses are read from the device now and then, since reading them waits for it."""

from __future__ import annotations

import math
import time

from ae_toolkit.data.examples import need_finite
from ae_toolkit.training.signals import Signals
from ae_toolkit.training.state import Report, Training
from ae_toolkit.training.step import TERM_NAMES
from ae_toolkit.training.validation import validate

READ_SECONDS = 0.5  #: between two readings
SAVE_SECONDS = 300.0  #: between two checkpoints, at most


class LossReader:
    """Reads the losses of a training now and then, and keeps its time.

    Args:
        training: which goes on.
        signals: requests to stop it.
    """

    def __init__(self, training: Training, signals: Signals):
        self.training, self.signals = training, signals
        self.num_read, self.num_reported = training.step, training.step
        self.began_at = self.read_at = time.perf_counter()
        self.seconds = 0.0  # in steps since the last validation
        self.pause = 1  # steps between two looks, where there are several ranks

    def are_due(self) -> bool:
        """Returns True if it is time to look at them."""
        training = self.training
        if training.is_validating:
            return True
        if training.setup.ranks.num > 1:  # whose clocks differ, so they count steps instead
            return training.step - self.num_read >= self.pause
        waited = time.perf_counter() - self.read_at
        return bool(self.signals.caught) or waited > READ_SECONDS

    def read(self) -> None:
        """Brings the losses of the steps since the last look to the host, means over all ranks.

        Raises:
            RunError: one is not finite.
        """
        training, ranks = self.training, self.training.setup.ranks
        num, every = training.step - self.num_read, len(training.history)
        past = slice(self.num_read % every, (training.step - 1) % every + 1)
        training.history[past] = ranks.mean(training.history[past])
        training.losses = training.history[past].tolist()
        training.check_finite(self.num_read)
        now = time.perf_counter()
        overdue = ranks.is_main_process and now - training.saved_at > SAVE_SECONDS
        training.is_stopping, training.is_overdue = ranks.any(bool(self.signals.caught), overdue)
        spent = now - self.read_at
        self.pause = ranks.broadcast(max(int(READ_SECONDS * num / spent), 1))
        self.seconds += spent
        training.examples_per_second = num * training.setup.schedule.per_step / spent
        self.num_read, self.read_at = training.step, now

    def validate(self) -> None:
        """Looks at held-out examples, and reports what came of the steps since the last time."""
        training, setup = self.training, self.training.setup
        num = (training.step - 1) % len(training.history) + 1
        means = training.history[:num].mean(0).tolist()
        seen = None
        if len(setup.held_out):
            seen = validate(
                setup.optimizer.ema_model(),
                setup.modality,
                setup.held_out,
                setup.train,
                setup.ranks,
            )
            loss = seen.terms["loss"]
            if not math.isfinite(loss):
                need_finite(setup.held_out, setup.modality)
            score = seen.terms[setup.train.monitor]
            training.watch = training.watch.after(
                score if setup.train.monitor_mode == "min" else -score
            )
        training.report = Report(
            training.epoch,
            dict(zip(TERM_NAMES, means, strict=True)),
            seen,
            self.read_at - self.began_at,
            (training.step - self.num_reported) / self.seconds * setup.schedule.per_step,
        )
        self.num_reported, self.seconds = training.step, 0.0

    def go_on(self) -> None:
        """Counts none of the time that was spent on anything but steps."""
        training = self.training
        if training.is_validating or training.is_overdue or training.is_stopping:
            self.read_at = time.perf_counter()
