"""What held-out examples say of a model in training: its loss, and how much of its code is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ae_toolkit.contracts import Code, Forward, StepContext, flatten
from ae_toolkit.data.examples import Examples
from ae_toolkit.errors import UsageError, did_you_mean
from ae_toolkit.modality import Modality, modality_metrics
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import Train
from ae_toolkit.training.distributed import Ranks
from ae_toolkit.training.setup import Setup
from ae_toolkit.training.step import TERM_NAMES, terms_row

CHUNK_EXAMPLES = 1000  #: examples per validation batch


class Validation(NamedTuple):
    """What held-out examples say."""

    #: Means per example of the loss, of what it is made up of, and of `train.monitor`.
    terms: dict[str, float]
    active_units: int | None  #: how many code dimensions are in use; None: that cannot be said
    rates: list[float]  #: of every code dimension, nats in the mean; none where it is undefined
    codebook_use: float | None = None  #: the share of an integer's values that occur; None: reals

    @property
    def row(self) -> dict[str, Any]:
        """All of it, as a line of `metrics.jsonl` has it."""
        active = {} if self.active_units is None else {"active_units": self.active_units}
        rates = {"rates": [round(rate, 6) for rate in self.rates]} if self.rates else {}
        used = {} if self.codebook_use is None else {"codebook_use": round(self.codebook_use, 4)}
        return {**self.terms, **active, **rates, **used}


@torch.no_grad()
def validate(
    model: Any,
    modality: Modality,
    examples: Examples,
    train: Train,
    ranks: Ranks,
) -> Validation:
    """The mean terms over held-out examples, uncompiled and in fp32, with noise of their own.

    The loss is the one of the end of the training, so that a warm-up favours no early checkpoint.
    Ranks look at every so manieth batch, and each of them gets the numbers of all.
    """
    device = next(model.parameters()).device
    source = Source(train.seed, "validate", device)
    names = TERM_NAMES if train.monitor in TERM_NAMES else (*TERM_NAMES, train.monitor)
    totals = torch.zeros(len(names), dtype=torch.float64)
    units = LatentUsage()
    for first in range(0, len(examples), CHUNK_EXAMPLES * ranks.num):
        start = first + CHUNK_EXAMPLES * ranks.rank
        index = range(start, min(start + CHUNK_EXAMPLES, len(examples)))
        # Sharded weights need every rank at every batch: one that has none left repeats the first.
        batch = examples.at(index or range(min(CHUNK_EXAMPLES, len(examples)))).to(device)
        now = source.step(start)
        batch = batch._replace(y=modality.prepare(batch.y))
        with units.counting(model, counted=bool(index)):
            forward = model(batch, now, num_samples=model.objective.num_samples)
        row = terms_row(model.objective(forward.terms, now).mean(), forward.terms)
        if train.monitor not in TERM_NAMES:
            first = forward._replace(y=forward.y[: len(batch.y)])
            found = judge_guesses(model, modality, first, batch.mask, now)
            row = torch.cat([row, found[train.monitor].mean()[None]])
        totals += len(index) * row.cpu().double()
    units.gather(ranks)
    totals = ranks.total(totals) / len(examples)
    terms = dict(zip(names, totals.tolist(), strict=True))
    return Validation(terms, units.active, units.rates, units.codebook_use)


def judge_guesses(
    model: Any, modality: Modality, forward: Forward, mask: Tensor | None, step: StepContext
) -> dict[str, Tensor]:
    """The data type's metrics `(B,)` of the best guesses for a batch, by what stands for it."""
    z = model.bottleneck.mean(forward.h, forward.c)
    y_hat = model.decode(z, forward.c, step, mask=mask)
    return modality_metrics(modality, forward.y, y_hat, mask)


@torch.no_grad()
def check_monitor(setup: Setup) -> None:
    """Makes sure that there is a number by which the best checkpoint shall be known.

    Raises:
        UsageError: neither a loss nor a metric of the data type has its name, or weights are
            sharded, which gives losses only.
    """
    name, known = setup.train.monitor, list(TERM_NAMES)
    if name in known:
        return
    if not setup.ranks.shards(setup.train):
        batch = setup.batches.at(0).first(2)
        batch = batch._replace(y=setup.modality.prepare(batch.y))
        step = Source(0, "monitor", setup.device).step(0)
        model = setup.optimizer.ema_model()  # which learns nothing from what it sees
        forward = model(batch, step)
        known += judge_guesses(model, setup.modality, forward, batch.mask, step)
    if name not in known:
        raise UsageError(
            f"train.monitor: a validation has no number {name!r}: {did_you_mean(name, known)}"
        )


MIN_ACTIVE_VARIANCE = 0.01  #: Var_x(E[z|x]) of a dimension in use (Burda et al. 2016, section 5.2)


class LatentUsage:
    """Running sums over examples of what each code dimension carries."""

    def __init__(self) -> None:
        # How many, and of codes, their squares and their rates; in the end `(D,)` each.
        self.sums = [torch.zeros((), dtype=torch.float64) for _ in range(4)]
        self.values = torch.zeros(())  # of integers, how often each value occurs

    @contextmanager
    def counting(self, model: Any, *, counted: bool = True) -> Iterator[None]:
        """Counts every code that the model makes within the block, or only hears of their form."""

        def count(bottleneck: Any, given: tuple[Any, ...], code: Code) -> None:
            h, c = given
            z = flatten(bottleneck.mean(h, c)).float().cpu().double()
            rate = code.rate.float().mean((0, 1)).cpu().double()
            found = torch.tensor(len(z)), z.sum(0), z.square().sum(0), len(z) * rate
            self.sums = [s + counted * x for s, x in zip(self.sums, found, strict=True)]
            if num_classes := model.num_classes:
                values = z.long().flatten().bincount(minlength=num_classes)
                self.values = self.values + counted * values.double()

        bottleneck: Any = model.bottleneck
        if not isinstance(bottleneck, nn.Module):  # a stranger's may be a plain object
            yield
            return
        hook = bottleneck.register_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()

    def gather(self, ranks: Ranks) -> None:
        """Adds up what all ranks have counted."""
        self.sums = [ranks.total(each) for each in self.sums]
        if self.values.dim():
            self.values = ranks.total(self.values)

    @property
    def active(self) -> int | None:
        """How many dimensions are in use, as `evaluate.active_units` counts; None: cannot say."""
        num, mean, square, _ = self.sums
        if num < 2:
            return None
        return int(((square - mean.square() / num) / (num - 1) > MIN_ACTIVE_VARIANCE).sum())

    @property
    def rates(self) -> list[float]:
        """The mean rate of every dimension, nats; one in all where it does not fall into them."""
        num, _, _, rate = self.sums
        found: list[float] = (rate.flatten() / num).tolist() if num else []
        return found

    @property
    def codebook_use(self) -> float | None:
        """The share of the values of an integer that occur; None where codes are real."""
        return float((self.values > 0).double().mean()) if self.values.dim() else None
