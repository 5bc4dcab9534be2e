"""Compiling a step: how the compiler is called, where its cache is, what a killed one leaves there.

PyTorch's compiler keeps libraries, which whoever compiles the same loads and runs. By itself it
keeps them where temporary files are, under a name that anybody could take in advance; here it is a
folder that nobody but its user may write.

Libraries are written under their final names. A compiler that was killed meanwhile, with its
training, by a scheduler or a power cut, leaves one cut short, which would end every later training
that comes to the same code.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from ae_toolkit.console import Bar, duration, log
from ae_toolkit.data.examples import cache_root
from ae_toolkit.device import has_compiler
from ae_toolkit.errors import RunError, describe_error
from ae_toolkit.runs.lock import is_locked
from ae_toolkit.training.optimizer import EMAOptimizer
from ae_toolkit.training.setup import Setup
from ae_toolkit.training.step import TrainStep, compiles_whole_steps, make_step, take_step

COMPILE_SECONDS = 10.0  #: that compiling takes on two cores, and for each tensor of weights …
TENSOR_SECONDS = 0.6  #: … so much more (measured: 15 s for 24, 29 s for 56, 75 s for 115)
EXPECTED_SAVING = 0.15  #: share of the time that a compiled step is hoped to save
MAX_TIME_RATIO = 0.97  #: share of an eager step's time that a compiled one may take to be preferred
TIMED_STEPS = (
    10  #: steps that are timed; the fastest counts, since machines are busy with other things
)

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  #: the variable by which a user chooses another place

ELF_HEADER = struct.Struct(
    "<40xQ10xHH2x"
)  #: of ELF64: where its sections are listed, their size, number


def use_own_cache() -> None:
    """Keeps what is compiled in the user's own cache, unless the user has chosen another place.

    Where others may write there, it is kept in a folder that goes with this process.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        if chosen != default_cache_dir():  # PyTorch sets it too
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
    if not hasattr(os, "geteuid"):  # Windows keeps a user's folders to the user
        return stat.S_ISDIR(found.st_mode)
    mine = found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return mine and stat.S_ISDIR(found.st_mode)


def remove_truncated_libraries(cache: Path | None = None) -> None:
    """Removes libraries from the compiler's cache that are cut short and that nobody writes now.

    Args:
        cache: of the compiler; None: where PyTorch has it.
    """
    if cache is None:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        cache = Path(cache_dir())
    for library in cache.glob("*/*.so"):
        if _is_truncated(library) and not is_locked(
            cache / "locks" / f"{library.stem.partition('.')[0]}.lock"
        ):
            library.unlink(missing_ok=True)


def _is_truncated(path: Path) -> bool:
    """Whether a library lacks its end, where linkers list its sections; False if it is no ELF."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(ELF_HEADER.size)
            if size >= ELF_HEADER.size and start[:5] != b"\x7fELF\x02":
                return not start.strip(b"\0")  # nothing but zeros, as a power cut leaves it
            if size < ELF_HEADER.size:
                return True
            first, each, num = ELF_HEADER.unpack(start)
            if not first or size < first + each * num:
                return True
            file.seek(first)
            return not file.read(each * num).strip(b"\0")
    except OSError:
        return False


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
    remove_truncated_libraries()
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
    train, schedule, optimizer, ranks = setup.train, setup.schedule, setup.optimizer, setup.ranks
    eager = make_step(setup, compiled=False)
    coefficients = optimizer.coefficients(
        [train.lr * schedule.factor(first)], first=first, steps=schedule.steps
    )[0]
    before = [tensor.detach().clone() for tensor in optimizer.state_tensors()]

    def seconds(step: TrainStep, number: int) -> float:
        return _seconds(lambda: take_step(setup, step, first + number, coefficients), setup.device)

    try:
        seconds(eager, 0)
        hoped = EXPECTED_SAVING * seconds(eager, 1) * (schedule.steps - first)
        cost = compile_seconds(optimizer)
        if not ranks.broadcast(hoped > cost and has_compiler(setup.device)):
            return eager, False
        bar.begin(f"Trying whether compiling pays, which takes about {duration(cost)}")
        slow = min(seconds(eager, number) for number in range(TIMED_STEPS))
        began, reason = time.perf_counter(), ""
        try:
            with compiling():
                compiled = make_step(setup, compiled=True)
                for number in range(3):
                    seconds(compiled, number)
        except Uncompilable as error:
            reason = str(error)
        if ranks.any(bool(reason))[0]:
            why = reason or "another rank cannot compile"
            log(f"The training goes on without compiling: {why}")
            return eager, False
        spent = time.perf_counter() - began
        fast = min(seconds(compiled, number) for number in range(TIMED_STEPS))
        is_better = ranks.broadcast(fast < MAX_TIME_RATIO * slow)
        if is_better:
            gain = f"made a step {slow / fast:.2f} times as fast, so the rest of the training is"
            bar.log(f"Compiling took {duration(spent)} and {gain} compiled")
        else:
            loss = f"a compiled step takes {fast / slow:.2f} times as long as one that is not"
            bar.log(f"Compiling does not pay here: {loss}, so the training goes on without")
        return (compiled, True) if is_better else (eager, False)
    finally:
        optimizer.restore_tensors(before)


def compile_seconds(optimizer: EMAOptimizer) -> float:
    """Returns about how long compiling takes, as measured on two cores."""
    return COMPILE_SECONDS + TENSOR_SECONDS * len(optimizer.weights)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began
