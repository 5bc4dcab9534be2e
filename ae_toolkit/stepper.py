"""One step of a training as one function: forward, backward and update, eager or compiled whole.

Compiled whole, the three become one graph: the update of a matrix is one pass over its memory, in
the kernel that the compiler makes for it, and on CUDA the graph is launched at once. Whether that
repays the compiling is tried out before the first step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import Batch, Step
from ae_toolkit.device import Engine, has_compiler
from ae_toolkit.errors import said
from ae_toolkit.learner import Learner, Pace
from ae_toolkit.noise import replay
from ae_toolkit.ranks import Ranks
from ae_toolkit.rundir import tell

COMPILE_SECONDS = 20.0  #: that compiling takes on a slow machine, and a second more per …
WEIGHTS_PER_SECOND = 4  #: … so many tensors of weights
GAIN = 0.15  #: of the time, that a compiled step is hoped to save
TRIED = 10  #: steps that are timed


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
        compiled: whole; or, among several ranks, around their exchange of gradients.
    """

    def __init__(
        self,
        loss_of: Loss,
        called: nn.Module,
        learner: Learner,
        *,
        accumulate: int,
        device: torch.device,
        compiled: bool = False,
    ):
        self.loss_of, self.update, self.called = loss_of, learner.update, called
        self.accumulate, self.device, self.compiled = accumulate, device, compiled
        self.alone = not torch.distributed.is_initialized()
        self.take: Callable[..., Tensor] = self._take
        if compiled and self.alone:
            for tensor in learner.movable():
                torch._dynamo.mark_static_address(tensor)
            mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
            self.take = torch.compile(self._take, dynamic=False, fullgraph=True, mode=mode)
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
            torch.compiler.cudagraph_mark_step_begin()
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
        if isinstance(self.called, nn.parallel.DistributedDataParallel) and not last:
            return self.called.no_sync()
        if hasattr(self.called, "set_requires_gradient_sync"):  # FSDP
            self.called.set_requires_gradient_sync(last)
        return nullcontext()


def pays(
    make: Callable[[bool], Stepper],
    work: Callable[[Stepper, int], object],
    learner: Learner,
    *,
    steps: int,
    ranks: Ranks,
    device: torch.device,
) -> Stepper:
    """Returns a compiled stepper where compiling will have paid at the end, else an eager one.

    A few eager steps are timed. If the training is long enough, so are a few compiled ones, and the
    faster kind is taken. Everything is put back as it was before.

    Args:
        make: makes a stepper, compiled or not.
        work: does the step of that number, without a trace elsewhere than in the learner.
        learner: what the steps move.
        steps: that are to come.
        ranks: who must agree.
        device: where the work is done.
    """
    eager = make(False)
    before = [tensor.clone() for tensor in learner.movable()]
    try:
        work(eager, 0)
        slow = _seconds(lambda: work(eager, 1), device)
        cost = COMPILE_SECONDS + len(learner.weights) / WEIGHTS_PER_SECOND
        if not ranks.agree(steps * slow * GAIN > cost) or not has_compiler(device):
            return eager
        slow = min(_seconds(lambda: work(eager, 2), device) for _ in range(TRIED))
        began = time.perf_counter()
        with compiling():
            compiled = make(True)
            for number in range(3):
                work(compiled, number)
        spent = time.perf_counter() - began
        fast = min(_seconds(lambda: work(compiled, 2), device) for _ in range(TRIED))
        better = ranks.agree(fast < 0.97 * slow)
        tell(
            f"compiled in {spent:.0f} s: a step takes {fast / slow:.2f} of the time that it took"
            f"{'' if better else ', so it stays as it was'}"
        )
        return compiled if better else eager
    except torch._dynamo.exc.TorchDynamoException as error:
        tell(f"cannot be compiled, so steps stay as they are ({said(error)})")
        return eager
    finally:
        with torch.no_grad():
            for tensor, former in zip(learner.movable(), before, strict=True):
                tensor.copy_(former)
        for weight in learner.weights:
            weight.grad = None


@contextmanager
def compiling() -> Iterator[None]:
    """Lets the compiler see the whole step, and keeps its chatter off the terminal."""
    chatter = logging.getLogger("torch.utils.cpp_extension")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            yield
    finally:
        chatter.setLevel(level)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began
