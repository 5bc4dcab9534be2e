"""A model's weights, their moving average, and the optimiser that moves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ae_toolkit.recipe import Train


class Learner:
    """AdamW (Loshchilov and Hutter 2019) with gradient clipping and averaged weights.

    Args:
        model: whose parameters are moved; matrices and filters decay, biases and gains do not.
        train: the settings.
    """

    def __init__(self, model: nn.Module, train: Train):
        self.model, self.train = model, train
        self.weights = list(model.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        groups = [
            {
                "params": [w for w in self.weights if w.dim() >= 2],
                "weight_decay": train.weight_decay,
            },
            {"params": [w for w in self.weights if w.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=train.lr,
            betas=train.betas,
            fused=True,
        )

    def update(self, *, step: int, lr: float) -> None:
        """Moves the weights along their gradients, and their average after them.

        Args:
            step: how many updates there have been; the first averages forget faster.
            lr: the learning rate now.
        """
        if self.train.clip:
            nn.utils.clip_grad_norm_(self.weights, self.train.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        decay = min(self.train.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [w.detach() for w in self.weights], 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the averaged weights into the model for the length of a block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs; tensors are shared, not copied."""
        return {
            "weights": self.model.state_dict(),
            # `averaged` swaps storages, which a detached tensor does not follow.
            "average": [twin.detach() for twin in self.average],
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        for mine, saved in zip(self.average, state["average"], strict=True):
            mine.copy_(saved)

    def _swap(self) -> None:
        for weight, twin in zip(self.weights, self.average, strict=True):
            weight.data, twin.data = twin.data, weight.data
