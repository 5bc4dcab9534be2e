"""The processes that train one model together, as `torchrun` starts them.

    torchrun --nproc-per-node=4 -m ae_toolkit train RECIPE --out runs/mine

Each rank computes its part of every global batch, so the numbers are those of one process. Rank 0
writes; what all must agree on, such as when to stop, is settled here.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ae_toolkit.errors import RunError, UsageError
from ae_toolkit.recipe import Train

T = TypeVar("T")

TIMEOUT_VARIABLE = "AE_RANK_TIMEOUT"  #: seconds that ranks wait for each other
PATIENCE_SECONDS = 600.0


class Ranks(NamedTuple):
    """Which of how many processes this one is."""

    rank: int = 0  #: of this process; 0 leads, and is the one that writes
    num: int = 1  #: of processes
    device: torch.device = torch.device("cpu")  #: where the numbers that they exchange must lie
    store: Store | None = None  #: that outlives them, where `torchrun` keeps one

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def shards(self, train: Train) -> bool:
        """Returns True if no rank has the whole model."""
        return train.parallel == "fsdp" and self.num > 1

    def mean(self, values: Tensor) -> Tensor:
        """The mean of the same tensor on all ranks."""
        return self.total(values) / self.num

    def total(self, values: Tensor) -> Tensor:
        """The sum of the same tensor on all ranks, on the device that it came from."""
        if self.num == 1:
            return values
        there = values.to(self.device).double()  # few numbers ever travel
        with _together():
            dist.all_reduce(there)
        return there.to(values)

    def gather(self, values: Tensor) -> Tensor:
        """`(n, …)` of every rank, one after the other, `(num * n, …)`, without gradients."""
        if self.num == 1:
            return values.detach()
        found = [torch.empty_like(values) for _ in range(self.num)]
        with _together():
            dist.all_gather(found, values.detach().contiguous())
        return torch.cat(found)

    def broadcast(self, value: T) -> T:
        """What rank 0 says."""
        if self.num == 1:
            return value
        said: list[Any] = [value]
        with _together():
            dist.broadcast_object_list(said, device=self.device)
        return said[0]

    def any(self, *mine: bool) -> tuple[bool, ...]:
        """Of each flag, whether it is raised on any rank."""
        if self.num == 1:
            return mine
        return tuple((self.total(torch.tensor(mine, dtype=torch.float64)) > 0).tolist())

    def main_process_first(self, work: Callable[[], T]) -> T:
        """Does something slow on rank 0, then on the others, which find what it has left."""
        if self.num == 1:
            return work()
        patient: Any = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        with _together():
            for leads in (True, False):
                if self.is_main_process == leads:
                    done = work()
                dist.barrier(patient)
        return done

    def remember(self, what: str) -> None:
        """Leaves a word for those that `torchrun` starts after us, should one of us die."""
        if self.store is not None:
            self.store.set(f"ae/known/{what}", "1")

    def remembers(self, what: str) -> bool:
        """Whether those that `torchrun` had started before us have left that word."""
        return self.store is not None and self.store.check([f"ae/known/{what}"])

    def parallelize(self, model: nn.Module, train: Train) -> nn.Module:
        """Returns what a batch is given to, so that gradients become those of the global batch.

        DDP (Li et al. 2020) copies all weights to every rank and averages gradients; FSDP (Zhao et
        al. 2023), in its second form, shards weights, gradients and moments in place.
        """
        if self.num == 1:
            return model
        if train.parallel == "fsdp":
            from torch.distributed.fsdp import fully_shard

            for name, part in model.named_children():
                if name in ("encoder", "decoder") and any(True for _ in part.parameters()):
                    fully_shard(part)
            fully_shard(model)
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=ids, forward_sync_buffers=False
        )


def launched() -> bool:
    """Whether `torchrun`, or something that sets the same variables, has started this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Meets the other ranks for the length of a block; alone, there is nobody to meet.

    Raises:
        RunError: some do not arrive in time.
    """
    seconds, here = _timeout_seconds(), os.environ
    if not launched():
        kept = here.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        yield Ranks(store=next(rendezvous("env://"))[0] if kept else None)
        return
    there, kind = (device, "nccl") if device.type == "cuda" else (torch.device("cpu"), "gloo")
    if dist.is_initialized():  # by a program of which this training is a part
        yield Ranks(dist.get_rank(), dist.get_world_size(), there)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    patience = timedelta(seconds=seconds)
    try:
        outliving, rank, num = next(rendezvous("env://", timeout=patience))
        store = PrefixStore(_rendezvous(outliving, rank, num, seconds), outliving)
        dist.init_process_group(kind, store=store, rank=rank, world_size=num, timeout=patience)
    except (RuntimeError, ValueError) as error:
        num = here["WORLD_SIZE"]
        place = f"{here.get('MASTER_ADDR', '?')}:{here.get('MASTER_PORT', '?')}"
        raise RunError(
            f"rank {here.get('RANK', '0')} of {num} waited {seconds:g} s at {place}, and not all "
            f"ranks came: start {num} processes that reach each other, or raise {TIMEOUT_VARIABLE}"
        ) from error
    try:
        yield Ranks(rank, num, there, outliving)
    finally:
        dist.destroy_process_group()


def _timeout_seconds() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, str(PATIENCE_SECONDS))
    with suppress(ValueError, OverflowError):
        if timedelta(seconds=float(text)) > timedelta(0):
            return float(text)
    raise UsageError(f"{TIMEOUT_VARIABLE} is {text!r}, but must be a number of seconds")


def _rendezvous(store: Store, rank: int, num: int, seconds: float) -> str:
    """Returns a word that only the ranks of this very start share.

    `torchrun` keeps the store when it starts ranks anew, and with it what the former ones have left
    there (pytorch/pytorch#135712): addresses at which nobody answers any more.
    """
    me = secrets.token_hex(8)
    if rank == 0:
        store.set("ae/host", me)
        others = [f"ae/{me}/{other}" for other in range(1, num)]
        store.wait(others, timedelta(seconds=seconds))
        store.set(f"ae/{me}/met", " ".join(store.get(other).decode() for other in others))
        return me
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if store.check(["ae/host"]):
            host = store.get("ae/host").decode()
            store.set(f"ae/{host}/{rank}", me)
            if store.check([f"ae/{host}/met"]) and me in store.get(f"ae/{host}/met").decode():
                return host
        time.sleep(0.02)
    raise RuntimeError("rank 0 has not come")


def check_batch(train: Train, num: int) -> None:
    """Checks that a batch can be shared evenly.

    Raises:
        UsageError: the number of ranks does not divide the batch.
    """
    if train.batch_size % num:
        near = max(round(train.batch_size / num), 1) * num
        raise UsageError(
            f"train.batch_size is {train.batch_size}, which {num} ranks cannot share evenly: "
            f"try {near}"
        )


@contextmanager
def _together() -> Iterator[None]:
    """Says what has happened when another rank is gone.

    Raises:
        RunError: an exchange failed, since another rank has stopped or cannot be reached.
    """
    try:
        yield
    except RunError:
        raise
    except RuntimeError as error:
        raise RunError(
            "another rank has stopped or cannot be reached, so this one stops too; what was saved "
            "stays: start all of them again with --resume"
        ) from error
