"""One step of a training as one function: forward, backward and update, eager or compiled whole.

Compiled whole, the three become one graph: the update of a matrix is one pass over its memory, in
the kernel that the compiler makes for it, and on CUDA the graph is launched at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import Batch, Step
from ae_toolkit.randomness import replay
from ae_toolkit.training.optimizer import Learner, Pace


class Loss(Protocol):
    """The loss `()` of a batch, and what it is made of as a row that is logged."""

    def __call__(self, batch: Batch, now: Step) -> tuple[Tensor, Tensor]: ...


class Stepper:
    """Takes steps.

    Args:
        loss_of: the loss of a batch; it calls `called`.
        called: the model, or what `Ranks.spread` made of it.
        learner: what moves the weights.
        accumulate: batches per step.
        device: where the work is done.
        alone: whether there are no other ranks to exchange gradients with.
        compiled: whole; or, among several ranks, around their exchange.
    """

    def __init__(
        self,
        loss_of: Loss,
        called: nn.Module,
        learner: Learner,
        *,
        accumulate: int,
        device: torch.device,
        alone: bool = True,
        compiled: bool = False,
    ):
        self.loss_of, self.update, self.called = loss_of, learner.update, called
        self.accumulate, self.device, self.compiled = accumulate, device, compiled
        self.alone = alone
        self.take: Callable[..., Tensor] = self._take
        if compiled and self.alone:
            options: dict[str, Any] = {}
            if accumulate == 1:
                # Every call is like the first, and checking that takes a tenth of a short step.
                options["guard_filter_fn"] = torch.compiler.skip_all_guards_unsafe
            if accumulate == 1 and device.type == "cuda":
                # Gradients that wait for others would lie in a graph's own memory.
                options["triton.cudagraphs"] = True
                for tensor in learner.movable():
                    torch._dynamo.mark_static_address(tensor)
            self.take = torch.compile(  # type: ignore[call-overload]  # lags behind in PyTorch
                self._take, dynamic=False, fullgraph=True, isolate_recompiles=True, options=options
            )
        elif compiled:
            self.loss_of = torch.compile(loss_of, dynamic=False)
            self.update = torch.compile(learner.update, dynamic=False)

    def __call__(self, batch: Batch, drawn: list[Tensor], pace: Tensor, *, last: bool) -> Tensor:
        """Learns from a batch.

        Args:
            batch: on the device.
            drawn: its noise.
            pace: a row of `Learner.paces`, on the CPU.
            last: of those that make a step, so that the weights move now.

        Returns:
            What is logged, on the device.
        """
        if self.compiled and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            pace = pace.to(self.device, non_blocking=True)
        return self.take(batch, drawn, pace, last)

    def _take(self, batch: Batch, drawn: list[Tensor], row: Tensor, last: bool) -> Tensor:
        pace = Pace(*row.unbind())
        now = replay(pace.progress.to(self.device, non_blocking=True), drawn)
        with nullcontext() if self.alone else self._exchange(last):
            loss, terms = self.loss_of(batch, now)
            (loss / self.accumulate).backward()  # type: ignore[no-untyped-call]
        if last:
            self.update(pace)
        return terms

    def _exchange(self, last: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients once per step, not once per batch."""
        if isinstance(self.called, nn.parallel.DistributedDataParallel):
            return nullcontext() if last else self.called.no_sync()
        sharded: Any = self.called
        sharded.set_requires_gradient_sync(last)
        return nullcontext()
