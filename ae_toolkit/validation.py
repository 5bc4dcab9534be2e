"""A look at a model in training: its loss on held-out examples, and a figure for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ae_toolkit import checkpoint, rundir
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import Terms, label_row
from ae_toolkit.data import Examples
from ae_toolkit.modality import Modality
from ae_toolkit.noise import Source
from ae_toolkit.ranks import Ranks

TERMS = ("loss", "distortion", "rate", "penalty")  #: means per example, nats or the like

CHUNK = 1000  #: examples per validation batch


@torch.no_grad()
def validate(
    model: Autoencoder,
    modality: Modality,
    objective: Any,
    examples: Examples,
    seed: int,
    ranks: Ranks,
) -> dict[str, float]:
    """The mean terms over held-out examples, uncompiled and in fp32, with noise of their own.

    The loss is the one of the end of the training, so that a warm-up favours no early checkpoint.
    """
    device = next(model.parameters()).device
    source, totals = Source(seed, "validate", device), torch.zeros(len(TERMS), dtype=torch.float64)
    for first in range(0, len(examples), CHUNK * ranks.num):
        start = first + CHUNK * ranks.rank
        index = range(start, min(start + CHUNK, len(examples)))
        counted = len(index)
        index = index or range(1)  # sharded weights need every rank at every batch
        batch = examples.at(index).to(device)
        now = source.step(start)
        terms = model(
            batch._replace(y=modality.prepare(batch.y)), now, num_samples=objective.num_samples
        )
        row = torch.stack([objective(terms, now).mean(), *means(terms)])
        totals += counted * row.double().cpu()
    return dict(zip(TERMS, (ranks.total(totals) / len(examples)).tolist(), strict=True))


@torch.no_grad()
def draw(model: Autoencoder, modality: Modality, examples: Examples, path: Path) -> None:
    """Writes a figure of originals, reconstructions and samples; a failure costs just that."""
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
        with checkpoint.writing(path) as temporary:
            modality.figure(rows, temporary)
    except Exception as error:  # a plugin's drawing must not end a training
        rundir.tell(f"{path.name}: no figure, {type(error).__name__}: {error}")


def means(terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """Distortion, rate and penalty, `()` each."""
    return (
        terms.distortion.mean().detach(),
        terms.rate.sum(-1).mean().detach(),
        terms.penalty.mean().detach(),
    )
