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

GAMMA_PROPOSALS = 8  #: for each number; all are bad once in 10^10
POISSON_HALVINGS = 40  #: of the counts that are possible


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


def gamma(concentration: Tensor, step: StepContext) -> Tensor:
    """Gamma noise of rate 1 and of a `concentration` `(B, …)` above 0, to which gradients flow.

    Marsaglia and Tsang (2000) accept more than 95% of their proposals: of `GAMMA_PROPOSALS` drawn
    together the first good one is taken. The gradient is the implicit one (Figurnov et al. 2018).
    Beta and Dirichlet noise are ratios of gamma noise.
    """
    alpha = concentration.detach().float()
    d = torch.where(alpha < 1, alpha + 1, alpha) - 1 / 3
    shape = (*alpha.shape, GAMMA_PROPOSALS)
    x, u = step.randn(shape), step.rand(shape)
    v = (1 + x / (9 * d[..., None]).sqrt()).clamp(min=1e-6) ** 3
    good = torch.log(u) < 0.5 * x.square() + d[..., None] * (1 - v + torch.log(v))
    chosen = good.to(torch.uint8).argmax(-1, keepdim=True)
    sample = d * v.gather(-1, chosen)[..., 0]
    # Below 1, a sample for one more is shrunk by a power of a uniform number.
    shrink = step.rand(tuple(alpha.shape)).clamp(min=1e-20) ** (1 / alpha)
    sample = torch.where(alpha < 1, sample * shrink, sample).clamp(min=1e-30)
    return sample + (concentration - alpha) * torch._standard_gamma_grad(alpha, sample)


def poisson(rate: Tensor, step: StepContext) -> Tensor:
    """Poisson noise of a `rate` `(B, …)` of at least 0: counts, as real numbers, without gradients.

    The count at which the distribution function passes a uniform number, found by bisection.
    """
    rate = rate.detach().double()
    u = step.rand(tuple(rate.shape)).double()
    low, high = torch.full_like(rate, -1), (rate + 12 * rate.sqrt() + 30).ceil()
    for _ in range(POISSON_HALVINGS):
        middle = ((low + high) / 2).floor()
        passed = torch.special.gammaincc(middle + 1, rate) > u
        low, high = torch.where(passed, low, middle), torch.where(passed, middle, high)
    return high.float()


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
            step = source.step(0, progress=0.0)
            randn, rand = self._listen("randn", step.randn), self._listen("rand", step.rand)
            rehearse(step._replace(randn=randn, rand=rand))
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


def replay(
    progress: Tensor,
    drawn: list[Tensor],
    *,
    gather: Callable[[Tensor], Tensor] = torch.detach,
) -> StepContext:
    """A `StepContext` that hands out noise that `NoiseRecorder.draw` has drawn."""
    waiting = iter(drawn)

    def hand_out(shape: Shape) -> Tensor:
        return next(waiting)

    return StepContext(progress, hand_out, hand_out, gather)
