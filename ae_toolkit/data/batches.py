"""The batches of a training: which examples, in which order, read ahead where they lie in files.

What batch number `micro` holds follows from the seed and the number alone, so a training that is
resumed anywhere sees what it would have seen; and every rank takes its own rows of the same batch.

Data that fits is shuffled whole. Of data that does not, blocks of neighbouring rows are read in an
order that is shuffled for each epoch, a window of many blocks at a time, and the rows of a window
are shuffled in memory, while a thread reads the window that follows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ae_toolkit.contracts import Batch
from ae_toolkit.data.examples import ON_DEVICE, Examples
from ae_toolkit.randomness import Source

BLOCK_BYTES = 1 << 20  #: bytes of neighbouring rows that stay together
WINDOW_BYTES = 128 << 20  #: bytes that are shuffled in memory; two windows are there at a time
ROW_INDEX_BYTES = 32  #: bytes that it takes to say where a row is


class Share(NamedTuple):
    """Which rows of a global batch are a rank's.

    Attributes:
        batch_size: of the global batch.
        batches: per epoch; what does not fill a batch waits for the next epoch's shuffle.
        rows: of each batch.
    """

    batch_size: int
    batches: int
    rows: slice


class Batches(ABC):
    """The batches of one rank, by number. Close it, or use it in a `with` block."""

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def of(
        examples: Examples,
        *,
        batch_size: int,
        batches: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> Batches:
        """Batches in memory on the device where the examples fit there, else read from files.

        Args:
            examples: what to train on.
            batch_size: of the global batch, a multiple of `num_ranks`.
            batches: per epoch.
            seed: of the run.
            device: where batches are needed.
            rank: whose rows of each batch.
            num_ranks: how many share a batch.
        """
        size = batch_size // num_ranks
        share = Share(batch_size, batches, slice(rank * size, (rank + 1) * size))
        kind = _InMemory if examples.nbytes <= ON_DEVICE else _ReadAhead
        return kind(examples, share, seed, device)

    @abstractmethod
    def at(self, micro: int) -> Batch:
        """This rank's rows of a global batch, counted over all epochs, on the device.

        Raises:
            RunError: a file of the data was removed or cut.
        """

    def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Ends whatever reads ahead."""


class _InMemory(Batches):
    """A shuffle of all rows per epoch, and one selection per batch and column."""

    def __init__(self, examples: Examples, share: Share, seed: int, device: torch.device):
        self.share, self.num, self.epoch = share, len(examples), -1
        self.columns = examples.to(device).columns
        self.source = Source(seed, "order", device)

    def at(self, micro: int) -> Batch:
        epoch, batch = divmod(micro, self.share.batches)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.source.permutation(self.num, epoch)
        start, size = batch * self.share.batch_size, self.share.batch_size
        return self.columns.select(self.order[start : start + size][self.share.rows])


class _ReadAhead(Batches):
    """Windows of whole batches, of which the next one is read while one is used."""

    def __init__(self, examples: Examples, share: Share, seed: int, device: torch.device):
        self.examples, self.share, self.device = examples, share, device
        row_bytes = examples.columns.row_bytes + ROW_INDEX_BYTES
        self.block = max(BLOCK_BYTES // row_bytes, 1)
        self.per_window = max(WINDOW_BYTES // (row_bytes * share.batch_size), 1)
        self.windows = math.ceil(share.batches / self.per_window)
        self.blocks, self.shuffles = Source(seed, "order"), Source(seed, "window")
        self.reading: dict[int, Future[tuple[Batch, Tensor]]] = {}
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="reading ahead")

    def at(self, micro: int) -> Batch:
        epoch, batch = divmod(micro, self.share.batches)
        number, at = divmod(batch, self.per_window)
        number += epoch * self.windows
        if [*self.reading] != [number, number + 1]:
            kept = self.reading.pop(number, None) or self.thread.submit(self._read, number)
            self.reading.clear()  # before more is read: there are two at a time
            self.reading = {number: kept, number + 1: self.thread.submit(self._read, number + 1)}
        rows, order = self.reading[number].result()
        return rows.map(lambda column: column.index_select(0, order[at]))

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)

    def _read(self, number: int) -> tuple[Batch, Tensor]:
        """Reads a window, counted over all epochs, and which rows make each batch."""
        rows, order = self._rows(*divmod(number, self.windows))
        batch = self.examples.columns.select(rows)
        if self.device.type == "cuda":  # from there a copy takes a tenth of the time
            batch = batch.map(Tensor.pin_memory)
        return batch.to(self.device), order.to(self.device)

    def _rows(self, epoch: int, at: int) -> tuple[Tensor, Tensor]:
        """Which rows this rank reads for a window, and in which order it uses them."""
        num, size = len(self.examples), self.per_window * self.share.batch_size
        start, stop = at * size, min((at + 1) * size, num)
        full = min(self.per_window, self.share.batches - at * self.per_window)

        # The window's part of the shuffled blocks. The last block is short, wherever it comes.
        blocks = self.blocks.permutation(math.ceil(num / self.block), epoch).numpy()
        lengths = np.minimum(self.block, num - blocks * self.block)
        ends = np.cumsum(lengths)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        found = [
            np.arange(b, min(b + self.block, num)) for b in blocks[first : last + 1] * self.block
        ]
        begin = int(ends[first] - lengths[first])
        inside = np.concatenate(found)[start - begin : stop - begin]

        shuffle = self.shuffles.permutation(len(inside), epoch * self.windows + at)
        mine = shuffle[: full * self.share.batch_size].view(full, self.share.batch_size)
        mine = mine[:, self.share.rows]
        used, order = np.unique(mine.numpy(), return_inverse=True)
        rows = self.examples.to_rows(torch.from_numpy(inside[used]))
        return rows, torch.from_numpy(order).view(mine.shape)
