"""Does compiling pay? Tried out before the first step, where the training is long enough."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ae_toolkit.console import Bar, duration, tell
from ae_toolkit.device import has_compiler
from ae_toolkit.training.compilation import Uncompilable, compiling
from ae_toolkit.training.optimizer import Learner
from ae_toolkit.training.setup import Workshop
from ae_toolkit.training.step import Stepper

COMPILE_SECONDS = 10.0  #: that compiling takes on two cores, and for each tensor of weights …
TENSOR_SECONDS = 0.6  #: … so much more (measured: 15 s for 24, 29 s for 56, 75 s for 115)
HOPED = 0.15  #: share of the time that a compiled step is hoped to save
WORTH = 0.97  #: share of an eager step's time that a compiled one may take to be preferred
TRIED = 10  #: steps that are timed; the fastest counts, since machines are busy with other things


def pays(shop: Workshop, step: int, bar: Bar) -> Stepper:
    """Returns a compiled stepper where compiling will have paid at the end, else an eager one.

    An eager step is timed. If as many as are to come take long enough, so are some compiled ones,
    and the faster kind is taken. Weights and moments are put back as they were.

    Args:
        shop: what is to be trained, rehearsed.
        step: the number of the next.
        bar: says what is being tried.
    """
    eager, pace = shop.stepper(False), shop.paces(step, 1)[0]
    before = [tensor.detach().clone() for tensor in shop.learner.movable()]

    def seconds(stepper: Stepper, number: int) -> float:
        return _seconds(lambda: shop.take(stepper, step + number, pace), shop.device)

    try:
        seconds(eager, 0)
        hoped = HOPED * seconds(eager, 1) * (shop.schedule.steps - step)
        cost = compile_seconds(shop.learner)
        if not shop.ranks.agree(hoped > cost and has_compiler(shop.device)):
            return eager
        bar.say(f"Trying whether compiling pays, which takes about {duration(cost)}")
        slow = min(seconds(eager, number) for number in range(TRIED))
        began, reason = time.perf_counter(), ""
        try:
            with compiling():
                compiled = shop.stepper(True)
                for number in range(3):
                    seconds(compiled, number)
        except Uncompilable as error:
            reason = str(error)
        if shop.ranks.any(bool(reason))[0]:
            why = reason or "another rank cannot compile"
            tell(f"The training goes on without compiling: {why}")
            return eager
        spent = time.perf_counter() - began
        fast = min(seconds(compiled, number) for number in range(TRIED))
        better = shop.ranks.agree(fast < WORTH * slow)
        if better:
            gain = f"made a step {slow / fast:.2f} times as fast, so the rest of the training is"
            bar.tell(f"Compiling took {duration(spent)} and {gain} compiled")
        else:
            loss = f"a compiled step takes {fast / slow:.2f} times as long as one that is not"
            bar.tell(f"Compiling does not pay here: {loss}, so the training goes on without")
        return compiled if better else eager
    finally:
        shop.learner.put_back(before)


def compile_seconds(learner: Learner) -> float:
    """Returns about how long compiling takes, as measured on two cores."""
    return COMPILE_SECONDS + TENSOR_SECONDS * len(learner.weights)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began
