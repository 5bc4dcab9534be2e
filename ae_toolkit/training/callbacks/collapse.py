"""Is the code used? What each dimension carries, and a word when a posterior collapses.

A decoder may learn to do without the code. Its rate is then 0, the loss looks well, and the model
is of no use (Bowman et al. 2016). Of a codebook a few values may be used, and a critic may win for
good. Measured while the model is validated, in the same pass.

Axes: B examples, K posterior samples, D code dimensions over all levels.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ae_toolkit.console import log
from ae_toolkit.contracts import Callback, Terms
from ae_toolkit.randomness import Source

MIN_ACTIVE_NATS = 0.01  #: a dimension that carries less carries nothing
MIN_CODEBOOK_USE = 0.2  #: the share of values below which a codebook has collapsed
MAX_INACTIVE_SHARE = 0.8  #: of such dimensions in a good model; beyond it a word is worth it
LEARNING_SHARE = 0.5  #: of a training, in which a codebook spreads and a critic may win
SILENT_SHARE = 0.25  #: of a training, in which nothing is said: codes die and come to life again


class CollapseWarning(Callback):
    """Says that codes collapse where the objective presses on them, once of each kind.

    Args:
        objective: asked how much it charges for a first nat, now and at the end of the training.
            So nothing is said while β warms up, nor where some nats are free.
    """

    def __init__(self, objective: Any):
        self.objective = objective
        self.said: set[str] = set()

    def on_validation(self, training: Any) -> None:
        seen = training.report.validation
        if seen is None:
            return
        progress = training.step / training.setup.schedule.steps
        model: Any = training.setup.optimizer.model
        if progress >= LEARNING_SHARE:
            self.say_once("codebook", codebook_warning(seen.codebook_use, model.num_classes))
            own = getattr(model.bottleneck, "warning", None)
            self.say_once("part", own() if own else "")
        if warning := self.look(seen.rates, distortion=seen.terms["distortion"], progress=progress):
            log(warning)

    def say_once(self, kind: str, warning: str) -> None:
        if warning and kind not in self.said:
            self.said.add(kind)
            log(warning)

    def look(self, rates: list[float], *, distortion: float, progress: float) -> str:
        """Returns what is to be said after a validation; mostly nothing.

        Args:
            rates: nats in the mean, by dimension; none of a bottleneck that charges nothing.
            distortion: in the mean.
            progress: share of the training that is done.
        """
        num, empty = len(rates), sum(rate < MIN_ACTIVE_NATS for rate in rates)
        kind = "all" if empty == num else "most" if empty > MAX_INACTIVE_SHARE * num else ""
        if not (rates and kind) or kind in self.said or progress < SILENT_SHARE:
            return ""
        now, full = (
            rate_weight(self.objective, num, distortion=distortion, progress=moment)
            for moment in (progress, 1.0)
        )
        if not bool(((full > 0) & (now > 0.95 * full)).all()):
            return ""
        self.said.add(kind)
        settings = {"free_bits": 0.1, "warmup": 0.5}
        known = [f"objective.{k}={v}" for k, v in settings.items() if hasattr(self.objective, k)]
        if getattr(self.objective, "beta", 0) > 1:
            known.insert(0, "a smaller objective.beta")
        cure = " or ".join([*known, "a weaker decoder"])
        if kind == "most":
            return (
                f"most of the code is idle: {empty} of its {num} numbers carry less than "
                f"{MIN_ACTIVE_NATS} nats; a smaller bottleneck.z_dim would do, or try {cure}"
            )
        carries = f"each of its {num} numbers carries" if num > 1 else "it carries"
        return (
            f"the code has collapsed: {carries} less than {MIN_ACTIVE_NATS} nats, and the decoder "
            f"does without; try {cure}"
        )


def codebook_warning(use: float | None, num_classes: int) -> str:
    """Returns what is to be said of a codebook of which a share is used; mostly nothing."""
    if use is None or use >= MIN_CODEBOOK_USE:
        return ""
    return (
        f"the codebook has collapsed: {round(use * num_classes)} of its {num_classes} values "
        f"occur; a smaller one would do, or try a smaller train.lr"
    )


def rate_weight(objective: Any, num: int, *, distortion: float, progress: float) -> Tensor:
    """By how much the loss of an example rises with the first nat of each dimension, `(num,)`."""
    if isinstance(objective, nn.Module):  # which keeps statistics, perhaps on another device
        objective = copy.deepcopy(objective).cpu().eval()
    k = objective.num_samples
    step = Source(0, "charge").step(0, progress=progress)
    with torch.enable_grad():
        rate = torch.zeros(k, 1, num, requires_grad=True)
        z = (torch.zeros(k, 1),)
        loss = objective(Terms(torch.full((k, 1), distortion), rate, torch.zeros(1), z), step).sum()
        if not loss.requires_grad:
            return torch.zeros(num)
        (slope,) = torch.autograd.grad(loss, rate, allow_unused=True, materialize_grads=True)
    return slope.sum((0, 1))
