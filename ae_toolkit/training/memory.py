"""What does not fit in memory ends in a sentence, before a machine swaps, or kills."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from ae_toolkit.errors import RunError

WEIGHT_COPIES = 5  #: of every weight: itself, its gradient, two moments and its average
SPARE_NUMBERS = 1 << 26  #: that a model may have beside its weights, such as tables of positions
SPARE_PIECES = 1000  #: modules, weights and tables that a model may have beside …
PIECES_PER_TENSOR = 20  #: … so many for each tensor of weights
TABLE_NUMBERS = 1 << 22  #: that a table may have to be made where a model is only planned
TENSOR_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
FULL_MEMORY_WORDS = ("can't allocate memory", "out of memory", "bad_alloc")  #: PyTorch's


def free_bytes() -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not say."""
    return _bytes_of("/proc/meminfo", "MemAvailable")


@contextmanager
def catch_out_of_memory(what: str, cure: str) -> Iterator[None]:
    """Lets the system refuse memory that is not there, and says so.

    Raises:
        RunError: memory ran out within the block; the sentence says `what` and `cure`.
    """
    try:
        with _never_swapping():
            yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"{what}: {cure}") from error


def enough_for(size: int, *, accumulate: int) -> AbstractContextManager[None]:
    """Says what helps where memory does not suffice for batches of `size` examples.

    Raises:
        RunError: memory ran out within the block.
    """
    cure = "make the parts smaller"
    if size > 1:
        parts = next((parts for parts in (2, 3, 5, 7) if size % parts == 0), 2)
        cure = (
            f"try --set train.batch_size={size // parts} --set "
            f"train.accumulate={parts * accumulate}, which learns from as many in each step"
        )
    return catch_out_of_memory(f"memory does not suffice for batches of {size:,} examples", cure)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, says that there is no more memory."""
    while error is not None:
        says = isinstance(error, RuntimeError) and any(w in str(error) for w in FULL_MEMORY_WORDS)
        if says or isinstance(error, MemoryError):
            return True
        error = error.__cause__
    return False


@contextmanager
def _never_swapping() -> Iterator[None]:
    """Limits this process to the memory that is free now: on Linux, and where there is no CUDA."""
    free, used = free_bytes(), _bytes_of("/proc/self/status", "VmData")
    if free is None or used is None or torch.cuda.is_available():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([used + free // _num_ranks(), *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _bytes_of(path: str, name: str) -> int | None:
    """A size in a file of Linux's, which says it in kilobytes."""
    if sys.platform != "linux":
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(), re.M)
    return int(found[1]) << 10 if found else None


class Planning(TorchFunctionMode):
    """Within it weights, and large tables, are made on the meta device, where they take no memory.

    Small tables stay real, and nothing is drawn: on the meta device that imports for seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in TENSOR_FACTORIES:
            sizes = args[:1] if func is torch.full else args
            kept = {key: named[key] for key in ("size", "dtype", "requires_grad") if key in named}
            planned = torch.empty(*sizes, **kept, device="meta")
            if func is torch.empty or planned.numel() > TABLE_NUMBERS:
                return planned
        drawn = args[0] if args else named.get("tensor")
        whose = getattr(func, "__module__", "")
        draws = whose == nn.init.__name__ or func in (Tensor.normal_, Tensor.uniform_)
        if draws and isinstance(drawn, Tensor) and drawn.is_meta:
            return drawn
        return func(*args, **named)


def bounded(shapes: Collection[Sequence[int]], what: str) -> AbstractContextManager[None]:
    """Ends the building of a model that has much more than the tensors that are there for it.

    Args:
        shapes: of the tensors.
        what: is wrong then.

    Raises:
        RunError: the model has many more pieces or numbers than the tensors.
    """
    # Twice as many: a part may replace what it has made.
    numbers = 2 * sum(math.prod(shape) for shape in shapes) + SPARE_NUMBERS
    return _bounded(what, numbers=numbers, pieces=len(shapes) * PIECES_PER_TENSOR + SPARE_PIECES)


@contextmanager
def enough_for_weights(*, copies: int) -> Iterator[None]:
    """Ends the building of a model whose training cannot fit in memory.

    Args:
        copies: of every weight that will be in the memory of the process.

    Raises:
        RunError: there is not enough for so many.
    """
    what, cure = "this recipe does not fit in memory", "make its parts smaller"
    numbers = (free_bytes() or sys.maxsize) / (4 * copies * _num_ranks())
    with catch_out_of_memory(what, cure), _bounded(f"{what}: {cure}", numbers=numbers):
        yield


@contextmanager
def _bounded(what: str, *, numbers: float, pieces: float = math.inf) -> Iterator[None]:
    def count(module: nn.Module, name: str, piece: Tensor | nn.Module | None) -> None:
        nonlocal pieces, numbers
        pieces -= 1
        numbers -= piece.numel() if isinstance(piece, Tensor) else 0
        if pieces < 0 or numbers < 0:
            raise RunError(f"{what}, such as {name!r} of a {type(module).__name__}")

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
        register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _num_ranks() -> int:
    """How many processes of a training share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
