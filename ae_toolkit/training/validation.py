"""A look at a model in training: its loss and its codes on held-out examples, and a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import Terms, label_row
from ae_toolkit.data.examples import Examples
from ae_toolkit.errors import Failure, said
from ae_toolkit.files import replacing
from ae_toolkit.modality import Modality
from ae_toolkit.randomness import Source
from ae_toolkit.training.callbacks.collapse import Units
from ae_toolkit.training.distributed import Ranks

TERMS = ("loss", "distortion", "rate", "penalty")  #: means per example, nats or the like

CHUNK = 1000  #: examples per validation batch


class Validation(NamedTuple):
    """What held-out examples say.

    Attributes:
        terms: means per example of the loss and of what it is made up of.
        active_units: how many code dimensions are in use; None where that cannot be said.
        rates: of every code dimension, nats in the mean; none where a rate is undefined.
    """

    terms: dict[str, float]
    active_units: int | None
    rates: list[float]

    @property
    def row(self) -> dict[str, Any]:
        """All of it, as a line of `metrics.jsonl` has it."""
        active = {} if self.active_units is None else {"active_units": self.active_units}
        rates = {"rates": [round(rate, 6) for rate in self.rates]} if self.rates else {}
        return {**self.terms, **active, **rates}


@torch.no_grad()
def validate(
    model: nn.Module,
    modality: Modality,
    objective: Any,
    examples: Examples,
    seed: int,
    ranks: Ranks,
) -> Validation:
    """The mean terms over held-out examples, uncompiled and in fp32, with noise of their own.

    The loss is the one of the end of the training, so that a warm-up favours no early checkpoint.
    Ranks look at every so manieth batch, and each of them gets the numbers of all.
    """
    device = next(model.parameters()).device
    source, totals = Source(seed, "validate", device), torch.zeros(len(TERMS), dtype=torch.float64)
    units = Units()
    for first in range(0, len(examples), CHUNK * ranks.num):
        start = first + CHUNK * ranks.rank
        index = range(start, min(start + CHUNK, len(examples)))
        # Sharded weights need every rank at every batch: one that has none left repeats the first.
        batch = examples.at(index or range(min(CHUNK, len(examples)))).to(device)
        now = source.step(start)
        batch = batch._replace(y=modality.prepare(batch.y))
        with units.counting(model, counted=bool(index)):
            terms = model(batch, now, num_samples=objective.num_samples)
        row = torch.stack([objective(terms, now).mean(), *means(terms)])
        totals += len(index) * row.cpu().double()
    units.gather(ranks)
    totals = ranks.total(totals) / len(examples)
    return Validation(dict(zip(TERMS, totals.tolist(), strict=True)), units.active, units.rates)


@torch.no_grad()
def draw(model: Autoencoder, modality: Modality, examples: Examples, path: Path) -> None:
    """Writes a figure of originals, reconstructions and samples.

    Raises:
        Failure: it cannot be drawn or written.
    """
    device = next(model.parameters()).device
    num = min(10, len(examples))
    batch = examples.at(range(num)).to(device)
    y, now = modality.prepare(batch.y), Source(0, "figure", device).step(0)
    c = model.embed(batch.labels, like=y)
    x, target = model.corruption(y, y, batch.mask, now)
    new = model.bottleneck.prior.sample(num, c, temperature=1.0, step=now)
    tensors = {
        "original": target,
        "reconstruction": model.decode(model.encode(x, c, batch.mask), c, now, mask=batch.mask),
        "sample": model.decode(new, c, now, mask=batch.mask),
    }
    labels = [label_row(batch.labels, i) for i in range(num)]
    try:
        rows = {
            name: [
                modality.from_tensor(y, labels=known)
                for y, known in zip(ys.cpu(), labels, strict=True)
            ]
            for name, ys in tensors.items()
        }
        with replacing(path) as temporary:
            modality.figure(rows, temporary)
    except Exception as error:  # whatever a plugin's drawing may raise
        raise Failure(f"{path.name}: no figure, {said(error)}") from error


def terms_in_words(row: Iterable[float]) -> str:
    """Returns a row of `TERMS` for people: the loss, and its parts where it has several."""
    loss, *others = (f"{value:.2f}" if abs(value) >= 10 else f"{value:.3g}" for value in row)
    parts = [
        f"{name} {value}" for name, value in zip(TERMS[1:], others, strict=True) if float(value)
    ]
    return f"{loss} ({', '.join(parts)})" if len(parts) > 1 else loss


def losses_in_words(learned: Mapping[str, float], held_out: Mapping[str, float] | None) -> str:
    """Returns what came of an epoch for people; the parts of the loss are those of `held_out`."""
    if held_out is None:
        return f"training {terms_in_words(learned.values())}"
    loss = terms_in_words([learned["loss"], 0, 0, 0])
    return f"validation {terms_in_words(held_out.values())}, training {loss}"


def means(terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """Distortion, rate and penalty, `()` each."""
    return (
        terms.distortion.mean().detach(),
        terms.rate.sum(-1).mean().detach(),
        terms.penalty.mean().detach(),
    )
