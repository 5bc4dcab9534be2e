"""Checkpoints: at every validation, every few minutes, and when somebody stops a training."""

from __future__ import annotations

import time

from ae_toolkit.contracts import Callback
from ae_toolkit.runs import checkpoint, directory
from ae_toolkit.training.optimizer import whole_state
from ae_toolkit.training.state import Training


class Checkpoints(Callback):
    """Writes checkpoints and removes old ones.

    Args:
        keep: how many of the last stay, beside the best.
    """

    def __init__(self, *, keep: int):
        self.keep = keep

    def on_losses(self, training: Training) -> None:
        if (training.is_stopping or training.is_overdue) and not training.is_validating:
            self.save(training)

    def on_validation(self, training: Training) -> None:
        self.save(training)

    def save(self, training: Training) -> None:
        """Saves the training; what cannot be written must not end it."""
        ranks, run, recipe = training.setup.ranks, training.run, training.setup.recipe
        # Sharded weights are put together by all ranks.
        weights = whole_state(training.setup.optimizer.ema_model(), keep=ranks.is_main_process)
        if training.logs:
            with training.retries.surviving("logs"):
                training.logs.flush()
        state = training.state_dict()
        if ranks.is_main_process:
            seen = training.report.validation if training.report else None
            metrics = seen.terms if seen and training.is_validating else None
            training.is_saved = False
            with training.retries.surviving("checkpoints"):
                config = checkpoint.config_json(recipe, metrics=metrics)
                folder = run / "checkpoints" / checkpoint.step_name(training.step)
                checkpoint.save(folder, weights, config, state=state)
                training.is_saved = True
                directory.remove_old_checkpoints(run, keep=self.keep)
        training.saved_at = time.perf_counter()
