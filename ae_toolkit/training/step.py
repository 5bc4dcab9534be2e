"""One optimiser step: augment, forward, loss, backward, update; eager, or compiled as a whole.

Compiled whole, they become one graph: the update of a matrix is one pass over its memory, in the
kernel that the compiler makes for it, and on CUDA the graph is launched at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ae_toolkit.autoencoder import augmented
from ae_toolkit.contracts import Batch, StepContext, Terms
from ae_toolkit.randomness import replay
from ae_toolkit.training.optimizer import StepCoefficients
from ae_toolkit.training.setup import Setup

TERM_NAMES = ("loss", "distortion", "rate", "penalty")  #: means per example, nats or the like


class TrainStep(Protocol):
    """Learns from a batch, as `train_step` does; returns a row of `TERM_NAMES`, on the device."""

    def __call__(
        self, batch: Batch, noise: list[Tensor], coefficients: Tensor, is_last: bool
    ) -> Tensor: ...


def compute_loss(setup: Setup, batch: Batch, step: StepContext) -> tuple[Tensor, Tensor]:
    """The loss `()` of a batch in the storage dtype, and a row of `TERM_NAMES` to log."""
    terms = compute_terms(setup, batch, step)
    loss = setup.objective(terms, step).mean()
    return loss, terms_row(loss, terms)


def compute_terms(setup: Setup, batch: Batch, step: StepContext) -> Terms:
    """What the loss of a batch in the storage dtype is made of."""
    batch = augmented(setup.modality, batch, step)
    with setup.engine.autocast():
        forward = setup.wrapped_model(batch, step, num_samples=setup.objective.num_samples)
    return forward.terms


def train_step(
    setup: Setup,
    batch: Batch,
    noise: list[Tensor],
    coefficients: Tensor,
    is_last: bool = True,
    *,
    loss_of: Callable[[Setup, Batch, StepContext], tuple[Tensor, Tensor]] = compute_loss,
    update: Callable[[StepCoefficients], None] | None = None,
) -> Tensor:
    """Learns from a batch.

    Args:
        setup: of the training.
        batch: this rank's part of a global batch, on the device.
        noise: its noise, in the order in which it is asked for.
        coefficients: a row of `EMAOptimizer.coefficients`.
        is_last: whether it is the last batch of those that make a step, so that weights move now.
        loss_of: `compute_loss`, or that compiled.
        update: `setup.optimizer.step`, or that compiled.

    Returns:
        A row of `TERM_NAMES`, on the device.
    """
    now = StepCoefficients(*coefficients.unbind())
    progress = now.progress.to(setup.device, non_blocking=True)
    step = replay(progress, noise, gather=setup.ranks.gather)
    with _gradient_exchange(setup, is_last):
        loss, row = loss_of(setup, batch, step)
        (loss / setup.train.accumulate).backward()
    if is_last:
        (update or setup.optimizer.step)(now)
    return row


def compiles_whole_steps() -> bool:
    """Returns True if this PyTorch makes one graph of a step; 2.13 was the first that does.

    It must trace a backward pass, and skip guards without mistaking one training for another.
    """
    from torch._dynamo import config

    return (
        hasattr(config, "trace_autograd_ops")
        and hasattr(torch.compiler, "skip_all_guards_unsafe")
        and "isolate_recompiles" in inspect.signature(torch.compile).parameters
    )


def make_step(setup: Setup, *, compiled: bool) -> TrainStep:
    """Returns `train_step` for a setup, eager or compiled: whole, or its loss and its update."""

    def step(batch: Batch, noise: list[Tensor], coefficients: Tensor, is_last: bool) -> Tensor:
        return train_step(setup, batch, noise, coefficients, is_last)

    if not compiled:
        return step
    # The exchange of gradients between ranks stays outside of the graphs.
    if setup.ranks.num > 1 or not compiles_whole_steps():
        loss_of = torch.compile(compute_loss, dynamic=False)
        update = torch.compile(setup.optimizer.step, dynamic=False)

        def by_halves(
            batch: Batch, noise: list[Tensor], coefficients: Tensor, is_last: bool
        ) -> Tensor:
            return train_step(
                setup, batch, noise, coefficients, is_last, loss_of=loss_of, update=update
            )

        return by_halves
    options: dict[str, Any] = {}
    if setup.train.accumulate == 1:
        # Every call is like the first, and checking that takes a tenth of a short step.
        options["guard_filter_fn"] = torch.compiler.skip_all_guards_unsafe
    if setup.train.accumulate == 1 and setup.device.type == "cuda":
        # Gradients that wait for others would lie in a graph's own memory.
        options["triton.cudagraphs"] = True
        for tensor in setup.optimizer.state_tensors():
            torch._dynamo.mark_static_address(tensor)
    whole: TrainStep = torch.compile(  # type: ignore[call-overload]  # lags behind in PyTorch
        step, dynamic=False, fullgraph=True, isolate_recompiles=True, options=options
    )
    if setup.device.type != "cuda":
        return whole

    def launched(batch: Batch, noise: list[Tensor], coefficients: Tensor, is_last: bool) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return whole(batch, noise, coefficients.to(setup.device, non_blocking=True), is_last)

    return launched


def take_step(setup: Setup, step: TrainStep, number: int, coefficients: Tensor) -> Tensor:
    """Takes the optimiser step of a number; returns the mean row of `TERM_NAMES` of its batches."""
    if setup.optimizer.keeps_gradients:
        setup.optimizer.zero_grad()
    each = setup.train.accumulate
    micros = range(number * each, (number + 1) * each)
    rows = [
        step(setup.batches.at(micro), setup.noise.draw(micro), coefficients, micro == micros[-1])
        for micro in micros
    ]
    return rows[0] if len(rows) == 1 else torch.stack(rows).mean(0)


def terms_row(loss: Tensor, terms: Terms) -> Tensor:
    """A row of `TERM_NAMES`, means over a batch."""
    means = terms.distortion.mean(), terms.rate.sum(-1).mean(), terms.penalty.mean()
    return torch.stack([loss.detach(), *(mean.detach() for mean in means)])


def _gradient_exchange(setup: Setup, is_last: bool) -> AbstractContextManager[Any]:
    """Lets ranks exchange gradients once per step, not once per batch."""
    if setup.ranks.num == 1:
        return nullcontext()
    if isinstance(setup.wrapped_model, nn.parallel.DistributedDataParallel):
        return nullcontext() if is_last else setup.wrapped_model.no_sync()
    sharded: Any = setup.wrapped_model
    sharded.set_requires_gradient_sync(is_last)
    return nullcontext()
