"""All randomness of training and evaluation, seeded by (seed, stream, step).

A step's noise depends on nothing that came before it, so a run that was killed anywhere resumes
with the very same numbers. `NoiseRecorder` draws a step's noise ahead of it, which keeps random
generators out of compiled code: eager and compiled steps see the same numbers too.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from ae_toolkit.contracts import Shape, StepContext


def seed_of(*what: object) -> int:
    """A 63-bit seed for anything that can be written down."""
    digest = blake2b("/".join(map(str, what)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Source:
    """Noise on one device.

    Args:
        seed: of the run.
        stream: keeps uses apart, such as `train` and `evaluate`.
        device: where the noise is needed.
    """

    def __init__(self, seed: int, stream: str, device: torch.device | str = "cpu"):
        self.seed, self.stream, self.device = seed, stream, torch.device(device)
        self.generator = torch.Generator(self.device)

    def step(self, index: int, *, progress: float = 1.0) -> StepContext:
        """The noise of one step, drawn as it is asked for."""
        self.generator.manual_seed(seed_of(self.seed, self.stream, index))
        return StepContext(torch.tensor(progress, device=self.device), self.randn, self.rand)

    def randn(self, shape: Shape) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def rand(self, shape: Shape) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    def permutation(self, num: int, index: int) -> Tensor:
        """A shuffle of `range(num)`, `(num,)` on the device."""
        self.generator.manual_seed(seed_of(self.seed, self.stream, "order", index))
        return torch.randperm(num, generator=self.generator, device=self.device)


def draw_classes(logits: Tensor, step: StepContext) -> Tensor:
    """One class for each element, `(N, P, *shape)` to `(N, *shape)`, by the Gumbel-max trick."""
    uniform = step.rand(tuple(logits.shape)).clamp(1e-10, 1 - 1e-7)
    return (logits - torch.log(-torch.log(uniform))).argmax(1)


class Request(NamedTuple):
    kind: str
    shape: Shape


class NoiseRecorder:
    """The noise that a step asks for: listened to once, then drawn ahead each time.

    Drawn for the global batch and sliced by rank, it is the same for any number of ranks.

    Args:
        source: where the noise comes from.
        rehearse: runs the step once, eagerly, with a listening `StepContext`.
        rank: which part of the global batch is wanted.
        num_ranks: how many parts there are.

    Attributes:
        beside: whether a part drew from PyTorch's own generators, as dropout does.
    """

    def __init__(
        self,
        source: Source,
        rehearse: Callable[[StepContext], object],
        *,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        self.source, self.rank, self.num_ranks = source, rank, num_ranks
        self.requests: list[Request] = []
        before = _own_generator(source.device)
        with torch.no_grad():
            _, randn, rand = source.step(0)
            rehearse(
                StepContext(
                    torch.zeros((), device=source.device),
                    self._listen("randn", randn),
                    self._listen("rand", rand),
                )
            )
        self.beside = not before.equal(_own_generator(source.device))

    def draw(self, index: int) -> list[Tensor]:
        """This rank's noise of step `index`, in the order in which it will be asked for."""
        if self.beside:
            torch.manual_seed(seed_of(self.source.seed, "global", index, self.rank))
        step = self.source.step(index)
        return [self._part(getattr(step, kind), shape) for kind, shape in self.requests]

    def _part(self, draw: Callable[[Shape], Tensor], shape: Shape) -> Tensor:
        if self.num_ranks == 1:
            return draw(shape)
        rows, *rest = shape
        return draw((rows * self.num_ranks, *rest))[rows * self.rank : rows * (self.rank + 1)]

    def _listen(self, kind: str, draw: Callable[[Shape], Tensor]) -> Callable[[Shape], Tensor]:
        def listened(shape: Shape) -> Tensor:
            self.requests.append(Request(kind, tuple(shape)))
            return draw(shape)

        return listened


def _own_generator(device: torch.device) -> Tensor:
    """The state of PyTorch's own generator for a device."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else torch.get_rng_state()


def replay(progress: Tensor, drawn: list[Tensor]) -> StepContext:
    """A `StepContext` that hands out noise that `NoiseRecorder.draw` has drawn."""
    waiting = iter(drawn)

    def hand_out(shape: Shape) -> Tensor:
        return next(waiting)

    return StepContext(progress, hand_out, hand_out)
