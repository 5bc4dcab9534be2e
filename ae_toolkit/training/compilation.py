"""Compiling a step: how the compiler is called, where its cache is, and whether it pays.

PyTorch's compiler keeps libraries, which whoever compiles the same loads and runs. By itself it
keeps them where temporary files are, under a name that anybody could take in advance; here it is a
folder that nobody but its user may write.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from ae_toolkit.console import Bar, duration, log
from ae_toolkit.data.examples import cache_root
from ae_toolkit.device import has_compiler
from ae_toolkit.errors import RunError, describe_error
from ae_toolkit.training.optimizer import EMAOptimizer
from ae_toolkit.training.setup import Setup
from ae_toolkit.training.step import TrainStep, compiles_whole_steps, make_step, take_step

COMPILE_SECONDS = 10.0  #: that compiling takes on two cores, and for each tensor of weights …
TENSOR_SECONDS = 0.6  #: … so much more (measured: 15 s for 24, 29 s for 56, 75 s for 115)
EXPECTED_SAVING = 0.15  #: share of the time that a compiled step is hoped to save
MAX_TIME_RATIO = 0.97  #: share of an eager step's time that a compiled one may take to be preferred
TIMED_STEPS = 10  #: of which the fastest counts, since machines are busy with other things

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  #: the variable by which a user chooses another place


def use_own_cache() -> None:
    """Keeps what is compiled in the user's own cache, unless the user has chosen another place.

    Where others may write there, it is kept in a folder that goes with this process.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    usual = default_cache_dir()
    if os.environ.get(CACHE_VARIABLE, usual) != usual:  # PyTorch sets it too
        return
    cache = cache_root() / "compiled"
    if not _is_private(cache):
        log(f"{cache}: is not yours alone, so what is compiled now is not kept: chmod 700 it")
        cache = Path(tempfile.mkdtemp(prefix="ae-compiled-"))
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ[CACHE_VARIABLE] = str(cache)


def _is_private(folder: Path) -> bool:
    """Whether a folder, made where it is missing, is this user's, and nobody else may enter it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    # Windows keeps a user's folders to the user.
    mine = os.name == "nt" or (found.st_uid == os.geteuid() and not found.st_mode & 0o077)
    return mine and stat.S_ISDIR(found.st_mode)


class Uncompilable(RunError):
    """A part does something that the compiler does not understand."""


@contextmanager
def compiling() -> Iterator[None]:
    """Lets the compiler see the whole step, and keeps its chatter off the terminal.

    Raises:
        Uncompilable: the compiler refuses the step; the sentence says what it says.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor import exc

    use_own_cache()
    chatter = logging.getLogger("torch.utils.cpp_extension")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with config.patch(trace_autograd_ops=True) if compiles_whole_steps() else nullcontext():
            yield
    # Before 2.7 PyTorch had no `InductorError`: those of the C++ compiler were of Dynamo's kind.
    except (TorchDynamoException, getattr(exc, "InductorError", TorchDynamoException)) as error:
        why = describe_error(getattr(error, "inner_exception", error))
        raise Uncompilable(
            f"this recipe cannot be compiled whole ({why}): set train.compile=off"
        ) from error
    finally:
        chatter.setLevel(level)


def choose_step(setup: Setup, bar: Bar, *, first: int) -> tuple[TrainStep, bool]:
    """Returns a compiled step where compiling will have paid at the end, else an eager one.

    An eager step is timed. If as many as are to come take long enough, so are some compiled ones,
    and the faster kind is taken. Weights and moments are put back as they were.

    Args:
        setup: of the training.
        bar: says what is being tried.
        first: the number of the next step.

    Returns:
        The step, and whether it is compiled.
    """
    optimizer, ranks = setup.optimizer, setup.ranks
    eager = make_step(setup, compiled=False)
    before = [tensor.detach().clone() for tensor in optimizer.state_tensors()]
    try:
        seconds = [time_step(setup, eager, first + number) for number in range(2)][-1]
        hoped = EXPECTED_SAVING * seconds * (setup.schedule.steps - first)
        cost = compile_seconds(optimizer)
        if not ranks.broadcast(hoped > cost and has_compiler(setup.device)):
            return eager, False
        bar.begin(f"Trying whether compiling pays, which takes about {duration(cost)}")
        slow = _best_seconds(setup, eager, first)
        began, compiled, reason = time.perf_counter(), eager, ""
        try:
            with compiling():
                compiled = make_step(setup, compiled=True)
                for number in range(3):
                    time_step(setup, compiled, first + number)
        except Uncompilable as error:
            reason = str(error)
        if ranks.any(bool(reason))[0]:
            why = reason or "another rank cannot compile"
            log(f"The training goes on without compiling: {why}")
            return eager, False
        spent = time.perf_counter() - began
        fast = _best_seconds(setup, compiled, first)
        if ranks.broadcast(fast < MAX_TIME_RATIO * slow):
            gain = f"made a step {slow / fast:.2f} times as fast, so the rest of the training is"
            bar.log(f"Compiling took {duration(spent)} and {gain} compiled")
            return compiled, True
        loss = f"a compiled step takes {fast / slow:.2f} times as long as one that is not"
        bar.log(f"Compiling does not pay here: {loss}, so the training goes on without")
        return eager, False
    finally:
        optimizer.restore_tensors(before)


def compile_seconds(optimizer: EMAOptimizer) -> float:
    """Returns about how long compiling takes, as measured on two cores."""
    return COMPILE_SECONDS + TENSOR_SECONDS * len(optimizer.weights)


def time_step(setup: Setup, step: TrainStep, number: int) -> float:
    """Takes a step, and returns how many seconds it took."""
    at, steps = min(number, setup.schedule.steps - 1), setup.schedule.steps
    lr = setup.train.lr * setup.schedule.factor(at)
    [coefficients] = setup.optimizer.coefficients([lr], first=at, steps=steps)
    _synchronize(setup.device)
    began = time.perf_counter()
    take_step(setup, step, number, coefficients)
    _synchronize(setup.device)
    return time.perf_counter() - began


def _best_seconds(setup: Setup, step: TrainStep, first: int) -> float:
    return min(time_step(setup, step, first + number) for number in range(TIMED_STEPS))


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
