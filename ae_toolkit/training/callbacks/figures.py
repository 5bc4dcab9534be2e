"""A figure of originals, reconstructions and samples, drawn now and then."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import Callback, label_row
from ae_toolkit.data.examples import Examples
from ae_toolkit.errors import RunError, describe_error
from ae_toolkit.files import replacing
from ae_toolkit.modality import Modality
from ae_toolkit.randomness import Source
from ae_toolkit.training.state import Training

FIGURE_SECONDS = 30.0  #: between two figures, at least
MAX_EXAMPLES = 10  #: in a row


class Figures(Callback):
    """Draws into `figures/` of the run directory."""

    def __init__(self) -> None:
        self.drawn_at = -math.inf

    def on_validation(self, training: Training) -> None:
        setup, now = training.setup, time.perf_counter()
        is_due = now - self.drawn_at > FIGURE_SECONDS or training.step == setup.schedule.steps
        if not setup.ranks.broadcast(is_due):
            return
        self.drawn_at = now
        if model := training.ema_model():
            examples = setup.held_out if len(setup.held_out) else setup.examples
            with training.retries.surviving("figures"):
                draw_figure(model, setup.modality, examples, figure_path(training))


def figure_path(training: Training) -> Path:
    """Where the figure of the latest step is, if one was drawn."""
    return training.run / "figures" / f"step_{training.step:07d}.png"


@torch.no_grad()
def draw_figure(model: Autoencoder, modality: Modality, examples: Examples, path: Path) -> None:
    """Writes a figure of originals, reconstructions and samples.

    Raises:
        RunError: it cannot be drawn or written.
    """
    device = next(model.parameters()).device
    num = min(MAX_EXAMPLES, len(examples))
    batch = examples.at(range(num)).to(device)
    y, now = modality.prepare(batch.y), Source(0, "figure", device).step(0)
    c = model.embed(batch.labels, like=y)
    x, target = model.corruption(y, y, batch.mask, now)
    new = model.sample(num, c, temperature=1.0, step=now)
    tensors = {
        "original": target,
        "reconstruction": model.decode(model.encode(x, c, batch.mask), c, now, mask=batch.mask),
        "sample": model.decode(new, c, now, mask=batch.mask),
    }
    labels = [label_row(batch.labels, i) for i in range(num)]
    try:
        rows: dict[str, list[Any]] = {}
        for name, ys in tensors.items():
            pairs = zip(ys.cpu(), labels, strict=True)
            rows[name] = [modality.from_tensor(y, labels=known) for y, known in pairs]
        with replacing(path) as temporary:
            modality.figure(rows, temporary)
    except Exception as error:  # whatever a plugin's drawing may raise
        raise RunError(f"{path.name}: no figure, {describe_error(error)}") from error
