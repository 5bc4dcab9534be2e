"""A model's weights, their moving average, and the optimiser that moves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from ae_toolkit import registry
from ae_toolkit.errors import UsageError, did_you_mean
from ae_toolkit.recipe import Train
from ae_toolkit.runs.checkpoint import is_sound

ADAM_EPS = 1e-8  #: added to the root of AdamW's second moment, as in the paper


class StepCoefficients(NamedTuple):
    """What an update must know of its step: `()` each.

    Attributes:
        progress: share of the training that is done, in [0, 1].
        lr: the learning rate.
        step_size: the learning rate over the first moment's bias correction, 1 - β₁ᵗ.
        bias_correction2: one over the root of the second moment's, 1 - β₂ᵗ.
        ema_weight: how far the averaged weights move towards the weights, in [0, 1].
    """

    progress: Tensor
    lr: Tensor
    step_size: Tensor
    bias_correction2: Tensor
    ema_weight: Tensor


def adamw_update(
    weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, *,
    now: StepCoefficients, betas: tuple[float, float],
) -> None:  # fmt: skip
    """AdamW (Loshchilov and Hutter 2019)."""
    first.lerp_(grad, 1 - betas[0])
    second.lerp_(grad.square(), 1 - betas[1])
    weight.sub_(now.step_size * first / (second.sqrt() * now.bias_correction2 + ADAM_EPS))


def sgd_update(
    weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, *,
    now: StepCoefficients, betas: tuple[float, float],
) -> None:  # fmt: skip
    """Stochastic gradient descent with momentum `betas[0]` (Sutskever et al. 2013)."""
    first.mul_(betas[0]).add_(grad)
    weight.sub_(now.lr * first)


class EMAOptimizer:
    """Gradient clipping, decay, the update rule that the settings name, and averaged weights.

    An update is one pass over the memory of weights, moments and averages: by PyTorch's fused
    kernel for AdamW, or, inside a compiled step, by the kernel that the compiler makes of a rule.

    Args:
        model: whose parameters are moved; matrices and filters decay, biases and gains do not.
        averaged: a copy of the model, which gets the averaged weights.
        train: the settings.
        prefer: the distribution whose rule wins where names clash.
    """

    def __init__(self, model: nn.Module, averaged: nn.Module, train: Train, *, prefer: str = ""):
        self.update = registry.optimizers.get(train.optimizer, prefer=prefer)
        self.keeps_gradients = False  # until the next step, for whoever looks at them
        self.model, self._ema_model, self.train = model, averaged.requires_grad_(False), train
        learned = {name: w for name, w in model.named_parameters() if w.requires_grad}
        self.names, self.weights = list(learned), list(learned.values())
        twins = dict(averaged.named_parameters())
        with torch.no_grad():
            # Sharded weights are moved shard by shard, since AdamW knows no neighbours.
            self.mine = [_local(weight) for weight in self.weights]
            self.average = [_local(twins[name]) for name in self.names]
            self.frozen = [
                (_local(twins[name]), _local(weight))
                for name, weight in model.named_parameters()
                if name not in learned
            ]
        self.first = [torch.zeros_like(weight) for weight in self.mine]
        self.second = [torch.zeros_like(weight) for weight in self.mine]
        self.counts = [torch.zeros((), device=weight.device) for weight in self.mine]
        self.decays = [train.weight_decay if w.dim() >= 2 else 0.0 for w in self.weights]
        self.scales = [lr_scale_of(name, train) for name in self.names]

    def coefficients(self, lrs: Sequence[float], *, first: int, steps: int) -> Tensor:
        """The coefficients of some steps, `(len(lrs), 5)` on the CPU.

        Args:
            lrs: the learning rate of each.
            first: the number of the first.
            steps: of the whole training.
        """
        b1, b2 = self.train.betas
        rows = []
        for step, lr in enumerate(lrs, start=first):
            decay = min(self.train.ema, (1 + step) / (10 + step))  # early averages forget faster
            corrected = lr / (1 - b1 ** (step + 1)), (1 - b2 ** (step + 1)) ** -0.5
            rows.append([step / steps, lr, *corrected, 1 - decay])
        return torch.tensor(rows)

    def step(self, now: StepCoefficients) -> None:
        """Moves the weights along their gradients, and their average after them."""
        grads = [_local(grad) for grad in self._gradients()]
        with torch.no_grad():
            if self.update is adamw_update and not torch.compiler.is_compiling():
                self._move_fused(grads, now)
            else:
                self._move(grads, now)
        if not self.keeps_gradients:
            self.zero_grad()

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for weight in self.weights:
            weight.grad = None

    def _gradients(self) -> list[Tensor]:
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        if not self.train.clip:
            return grads
        norm = nn.utils.get_total_norm(grads)
        factor = (self.train.clip / (_entire(norm) + 1e-6)).clamp(max=1.0)
        return [_local(grad) * factor for grad in grads]

    def _move(self, grads: list[Tensor], now: StepCoefficients) -> None:
        device = self.mine[0].device
        now = StepCoefficients(*(each.to(device, non_blocking=True) for each in now))
        scaled = {scale: _scaled(now, scale) for scale in {*self.scales}}
        for weight, grad, first, second, average, decay, scale in zip(
            self.mine, grads, self.first, self.second, self.average, self.decays, self.scales,
            strict=True,
        ):  # fmt: skip
            if decay:
                weight.mul_(1 - scaled[scale].lr * decay)
            self.update(weight, grad, first, second, now=scaled[scale], betas=self.train.betas)
            if self.train.ema:
                average.lerp_(weight, now.ema_weight)

    def _move_fused(self, grads: list[Tensor], now: StepCoefficients) -> None:
        b1, b2 = self.train.betas
        columns = (self.mine, grads, self.first, self.second, self.counts)
        kinds = list(zip(self.decays, self.scales, strict=True))
        for decay, scale in {*kinds}:
            chosen = [i for i, kind in enumerate(kinds) if kind == (decay, scale)]
            weights, slopes, first, second, counts = ([c[i] for i in chosen] for c in columns)
            adamw(
                weights, slopes, first, second, [], counts, foreach=False, fused=True,
                amsgrad=False, beta1=b1, beta2=b2, lr=scale * float(now.lr), weight_decay=decay,
                eps=ADAM_EPS, maximize=False,
            )  # fmt: skip
        if self.train.ema:
            torch._foreach_lerp_(self.average, self.mine, float(now.ema_weight))

    @torch.no_grad()
    def ema_model(self) -> nn.Module:
        """The averaged model, ready to be looked at: with the buffers of the other."""
        for twin, buffer in zip(self._ema_model.buffers(), self.model.buffers(), strict=True):
            twin.copy_(buffer)
        for still, weight in self.frozen:
            still.copy_(weight)
        if not self.train.ema:
            torch._foreach_copy_(self.average, self.mine)
        return self._ema_model

    def state_dict(self, *, keep: bool = True) -> dict[str, Any]:
        """All that a resumed training needs, whole even where weights are sharded.

        Args:
            keep: whether this rank has a use for it; every rank must ask.
        """
        columns = {"average": self.average, "first": self.first, "second": self.second}
        return {"weights": whole_state(self.model, keep=keep)} | {
            name: [
                _whole(mine, weight, keep=keep)
                for mine, weight in zip(column, self.weights, strict=True)
            ]
            for name, column in columns.items()
        }

    def load_state_dict(self, state: Mapping[str, Any], *, step: int) -> None:
        """Goes back to a state, which may have been saved under another sharding.

        Raises:
            KeyError: a weight is missing.
            ValueError: a tensor has another shape or type, or is not finite where it must be.
        """
        with torch.no_grad():
            mine, names = self.model.state_dict(), [n for n, _ in self.model.named_parameters()]
            if strange := {*state["weights"]} - {*mine}:
                raise ValueError(f"there is no weight {min(strange)!r}")
            for name, tensor in mine.items():
                _put(tensor, state["weights"][name], like=tensor, finite=name in names, name=name)
            for column in ("average", "first", "second"):
                for here, saved, like, name in zip(
                    getattr(self, column), state[column], self.weights, self.names, strict=True
                ):
                    _put(here, saved, like=like, finite=True, name=f"{column} of {name}")
            for count in self.counts:
                count.fill_(step)

    def state_tensors(self) -> list[Tensor]:
        """Every tensor that training changes."""
        columns = (self.mine, self.average, self.first, self.second, self.counts)
        return [*(tensor for column in columns for tensor in column), *self.model.buffers()]

    def restore_tensors(self, former: Sequence[Tensor]) -> None:
        """Undoes steps, given copies of their `state_tensors` before them."""
        with torch.no_grad():
            torch._foreach_copy_(self.state_tensors(), list(former))
        self.zero_grad()


def lr_scale_of(name: str, train: Train) -> float:
    """What the learning rate of a weight is multiplied by: the factor of the nearest part."""
    parts = [part for part in train.lr_scale if f"{name}.".startswith(f"{part}.")]
    return train.lr_scale[max(parts, key=len)] if parts else 1.0


def freeze_parts(model: nn.Module, train: Train) -> None:
    """Keeps the weights of parts whose learning rate is 0 as they are.

    Raises:
        UsageError: a part has no weights, or none are left to learn.
    """
    names = [name for name, _ in model.named_parameters()]
    for part in train.lr_scale:
        if not any(f"{name}.".startswith(f"{part}.") for name in names):
            known = {name.rpartition(".")[0] for name in names} | {n.split(".")[0] for n in names}
            raise UsageError(
                f"train.lr_scale: nothing with weights is called {part!r}: "
                f"{did_you_mean(part, known)}"
            )
    for name, weight in model.named_parameters():
        if not lr_scale_of(name, train):
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise UsageError("train.lr_scale: every weight has the learning rate 0: none would learn")


def _scaled(now: StepCoefficients, scale: float) -> StepCoefficients:
    if scale == 1:
        return now
    return now._replace(lr=now.lr * scale, step_size=now.step_size * scale)


def whole_state(model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """A model's state with its shards put together; every rank must ask for it.

    Args:
        model: of any sharding.
        keep: whether this rank has a use for it; else it gets empty tensors.
    """
    return {
        name: _kept(tensor.full_tensor(), keep) if _is_shard(tensor) else tensor.detach()
        for name, tensor in model.state_dict().items()
    }


# A `DTensor`, as FSDP makes them, is known by what it can do: importing it takes a second.


def _is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _local(tensor: Any) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if _is_shard(tensor) else tensor


def _entire(tensor: Any) -> Tensor:
    """A tensor with its shards put together."""
    return tensor.full_tensor() if _is_shard(tensor) else tensor


def _kept(entire: Tensor, keep: bool) -> Tensor:
    """Frees the device of a tensor that was put together, before the next one is."""
    return entire.detach().cpu() if keep else torch.empty(0)


def _whole(mine: Tensor, like: Any, *, keep: bool) -> Tensor:
    """A part, and those of the other ranks, of a tensor that is sharded like another."""
    if not _is_shard(like):
        return mine.detach()
    from torch.distributed.tensor import DTensor

    spread = DTensor.from_local(
        mine, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return _kept(spread.full_tensor(), keep)


def _put(mine: Tensor, saved: Tensor, *, like: Any, finite: bool, name: str) -> None:
    """Copies an entire tensor, or this rank's part of it.

    Raises:
        ValueError: it would have to be stretched or converted, or would spoil what it is put into.
    """
    if saved.shape != like.shape or saved.dtype != like.dtype:
        kinds = [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (saved, like)]
        raise ValueError(f"{name} is {kinds[0]}, not {kinds[1]}")
    if not is_sound(saved, finite=finite):
        raise ValueError(f"{name} is not finite")
    if _is_shard(like):
        from torch.distributed.tensor import distribute_tensor

        saved = distribute_tensor(saved.to(like.device), like.device_mesh, like.placements)
    _local(mine).copy_(_local(saved))
