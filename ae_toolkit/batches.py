"""The batches of a training, by number."""

from __future__ import annotations

import torch

from ae_toolkit.contracts import Batch
from ae_toolkit.noise import Source


class Batches:
    def __init__(self, examples, batch_size, batches, seed, device, rank, num_ranks):
        self.examples, self.batch_size, self.batches = examples, batch_size, batches
        self.order = Source(seed, "order", device)
        self.device = device
        self.rank, self.num_ranks = rank, num_ranks
        self.epoch, self.permutation = -1, torch.empty(0)

    @classmethod
    def of(cls, examples, *, batch_size, batches, seed, device, rank=0, num_ranks=1):
        return cls(examples, batch_size, batches, seed, device, rank, num_ranks)

    def at(self, micro: int) -> Batch:
        if micro // self.batches != self.epoch:
            self.epoch = micro // self.batches
            self.permutation = self.order.permutation(len(self.examples), self.epoch)
        share = self.batch_size // self.num_ranks
        at = micro % self.batches * self.batch_size + self.rank * share
        return self.examples.at(self.permutation[at : at + share]).to(self.device)

    def close(self) -> None:
        pass
