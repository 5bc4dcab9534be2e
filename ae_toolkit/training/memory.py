"""What does not fit in memory is said in a sentence, before a machine swaps, or kills.

Weights are counted while a model is built, when the system has promised memory but not yet given
any; a batch is judged by what a few of its examples leave for the backward pass.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
TRIAL_EXAMPLES = 8  #: examples of a batch that is judged


def free(device: torch.device) -> int | None:
    """Bytes that can be had on a device; None where nobody knows."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type != "cpu":
        return None
    known = [_number("/proc/meminfo", after="MemAvailable:", unit=1024), *map(_left, _groups())]
    return min((size for size in known if size is not None), default=None)


@contextmanager
def check_parameter_memory(
    device: torch.device, *, share: int = 1, copies: int = WEIGHT_COPIES
) -> Iterator[None]:
    """Ends the building of a model whose training cannot fit.

    Args:
        device: where it will be trained; it is built on the CPU.
        share: how many processes share the CPU's memory and do the same.
        copies: of every weight on the device.

    Raises:
        RunError: the weights, their gradients and moments are larger than what is free.
    """
    cpu = torch.device("cpu")
    room = [(cpu, copies * share if device == cpu else share, free(cpu))]
    room += [] if device == cpu else [(device, copies, free(device))]
    seen: dict[int, nn.Parameter] = {}
    total = 0

    def weigh(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        if parameter is None or id(parameter) in seen:
            return
        seen[id(parameter)] = parameter
        total += parameter.numel() * parameter.element_size()
        for where, times, size in room:
            if size is not None and total * times > size:
                raise RunError(
                    f"this recipe does not fit in memory: with a {type(module).__name__} it has "
                    f"{total // 4:,} parameters or more, whose training takes "
                    f"{_gb(total * times)}, and {_gb(size)} are free on the {where.type}: make its "
                    f"parts smaller"
                )

    hook = register_module_parameter_registration_hook(weigh)
    try:
        with catch_out_of_memory("this recipe does not fit in memory", "make its parts smaller"):
            yield
    finally:
        hook.remove()


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


@contextmanager
def bounded(shapes: Collection[Sequence[int]], what: str) -> Iterator[None]:
    """Ends the building of a model that has much more than the tensors that are there for it.

    Args:
        shapes: of the tensors.
        what: is wrong then.

    Raises:
        RunError: the model has many more pieces or numbers than the tensors.
    """
    numbers = sum(math.prod(shape) for shape in shapes)
    left = len(shapes) * PIECES_PER_TENSOR + SPARE_PIECES
    seen: dict[int, Tensor] = {}
    taken = 0

    def weigh(module: nn.Module, name: str, piece: Tensor | nn.Module | None) -> None:
        nonlocal left, taken
        left -= 1
        if left < 0:
            raise RunError(f"{what}, which are {len(shapes):,} tensors: it has many more pieces")
        if not isinstance(piece, Tensor) or id(piece) in seen:
            return
        seen[id(piece)] = piece
        taken += piece.numel()
        if taken > 2 * numbers + SPARE_NUMBERS:  # twice: a part may replace what it has made
            raise RunError(
                f"{what}, which are {numbers:,} numbers: with {name!r} of a "
                f"{type(module).__name__} it has {taken:,}"
            )

    hooks = [
        register_module_parameter_registration_hook(weigh),
        register_module_buffer_registration_hook(weigh),
        register_module_module_registration_hook(weigh),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_batch_memory(
    loss_of: Callable[[int], Tensor], size: int, device: torch.device, *, accumulate: int
) -> None:
    """Judges whether a batch fits, before it is tried, where trying would not end well.

    Args:
        loss_of: gives the loss `()` of so many examples.
        size: of a batch.
        device: where it will be.
        accumulate: batches per step, for the advice.

    Raises:
        RunError: it does not fit.
    """
    room = free(device)
    if device.type != "cpu" or room is None:
        return

    # What does not grow with the batch, such as weights that autocast copies, is told apart by a
    # second, smaller one.
    few = max(min(TRIAL_EXAMPLES, size // TRIAL_EXAMPLES), min(size, 2))
    fewer = few // 2
    base = 0
    verdict: list[str] = []

    def judge(needs: float) -> None:
        """Stops the few before they have taken much themselves."""
        if needs > room:
            verdict.append(
                f"a batch does not fit in memory: {size:,} examples leave {_gb(needs)} or more "
                f"for the backward pass, and {_gb(room)} are free: {_smaller(size, accumulate)}"
            )
            raise MemoryError

    def extended(saved: int) -> float:
        return base + (saved - base) / (few - fewer) * (size - fewer)

    try:
        if fewer:
            base = saved_bytes(lambda: loss_of(fewer), (), watch=judge)
        saved_bytes(lambda: loss_of(few), (), watch=lambda saved: judge(extended(saved)))
    except Exception:
        if verdict:
            raise RunError(verdict[0]) from None
        # Whatever else it is, the first step will say it better.


def enough_for(size: int, *, accumulate: int) -> AbstractContextManager[None]:
    """Says what helps where memory does not suffice for batches of so many examples.

    Raises:
        RunError: memory ran out within the block.
    """
    what = f"memory does not suffice for batches of {size:,} examples"
    return catch_out_of_memory(what, _smaller(size, accumulate))


@contextmanager
def catch_out_of_memory(what: str, cure: str) -> Iterator[None]:
    """Turns what PyTorch says of a memory that is full into a sentence.

    Raises:
        RunError: memory ran out within the block; the sentence says `what` and `cure`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"{what}: {cure}") from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, says that there is no more memory."""
    while error is not None:
        says = "can't allocate memory" in str(error) or "out of memory" in str(error)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(error, RuntimeError) and says:
            return True
        error = error.__cause__
    return False


def saved_bytes(
    run: Callable[[], Tensor],
    known: Iterable[Tensor],
    *,
    watch: Callable[[int], None] = lambda saved: None,
) -> int:
    """Bytes that the backward pass of `run` waits for.

    Args:
        run: gives a loss.
        known: what does not count, beside parameters.
        watch: is told of every sum on the way.
    """
    counted = {tensor.untyped_storage().data_ptr() for tensor in known}
    saved: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        weight = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        if not weight and storage.data_ptr() not in counted:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept: no address comes again
            watch(sum(size for size, _ in saved.values()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for size, _ in saved.values())


def _smaller(size: int, accumulate: int) -> str:
    if size < 2:
        return "make the parts smaller"
    parts = next((parts for parts in (2, 3, 5, 7) if size % parts == 0), 2)
    return (
        f"try --set train.batch_size={size // parts} --set train.accumulate={parts * accumulate}, "
        f"which learns from as many in each step"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def _number(path: Path | str, *, after: str = "", unit: int = 1) -> int | None:
    """The number in a file of the system's, in the line that begins with `after`."""
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(after):
                return int(line.removeprefix(after).split()[0]) * unit
    except (OSError, ValueError, IndexError):
        pass
    return None


def _groups() -> Iterator[tuple[Path, str, str]]:
    """The control groups that limit this process, each with its files of limit and usage."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root = Path("/sys/fs/cgroup", "memory" if kinds else "")
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if not kinds:
            limit, used = "memory.max", "memory.current"
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            yield group, limit, used
            if group == root:
                break


def _left(group: tuple[Path, str, str]) -> int | None:
    """Bytes that a control group leaves; what it only caches is counted as free."""
    folder, limit, used = group
    most, now = _number(folder / limit), _number(folder / used)
    if most is None or now is None or most >= 1 << 60:
        return None
    stat = folder / "memory.stat"
    kinds = ("active_file ", "inactive_file ")
    cached = [_number(stat, after=f"total_{k}") or _number(stat, after=k) or 0 for k in kinds]
    return max(most - now + sum(cached), 0)


def neighbours() -> int:
    """How many processes of a training share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
