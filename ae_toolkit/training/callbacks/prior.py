"""A prior that is fitted to the codes when a training has ended."""

from __future__ import annotations

import torch

from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.console import track
from ae_toolkit.contracts import Callback
from ae_toolkit.errors import wrap_plugin_errors
from ae_toolkit.randomness import Source
from ae_toolkit.registry import priors
from ae_toolkit.runs import checkpoint
from ae_toolkit.training.state import Training
from ae_toolkit.training.validation import CHUNK_EXAMPLES


class FitPrior(Callback):
    """Calls the prior's `fit`, where it has one, and saves what it learns in the best checkpoint.

    The prior is given a sample of the posterior for every example that was learned from.
    """

    def on_end(self, training: Training) -> None:
        setup = training.setup
        has_fit = hasattr(setup.model.bottleneck.prior, "fit")
        if not has_fit or not training.is_finished or not training.is_main_process:
            return
        point = checkpoint.best(training.run)
        if point is None:
            return
        model = Autoencoder(setup.recipe, modality=setup.modality)
        model.load_state_dict(checkpoint.load_weights(point.folder))
        model.to(setup.device).eval()
        levels, conditions, source = [], [], Source(setup.train.seed, "prior", setup.device)
        num, prior = len(setup.examples), model.bottleneck.prior
        for start in track(range(0, num, CHUNK_EXAMPLES), "reading codes for the prior"):
            batch = setup.examples.at(range(start, min(start + CHUNK_EXAMPLES, num)))
            batch, step = batch.to(setup.device), source.step(start)
            with torch.no_grad():
                batch = batch._replace(y=setup.modality.prepare(batch.y))
                x, _ = model.corruption(batch.y, batch.y, batch.mask, step)
                c = model.embed(batch.labels, like=x)
                h = model.encoder(x, c, batch.mask)
                z = model.bottleneck(h, c, num_samples=1, step=step).z
            levels.append(tuple(level.cpu() for level in z))
            conditions.append(c.cpu())
        model.cpu()
        with wrap_plugin_errors(f"{priors.describe(type(prior))} cannot be fitted"):
            prior.fit(tuple(map(torch.cat, zip(*levels, strict=True))), torch.cat(conditions))
        config = (point.folder / checkpoint.CONFIG_FILE).read_text(encoding="utf-8")
        state = checkpoint.load_state(point.folder)
        checkpoint.save(point.folder, model.state_dict(), config, state=state)
