"""Priors: one that sees the encoder, and one that is fitted when a training has ended."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import small

from ae_toolkit import UsageError, fit, load
from ae_toolkit.parts.prior import FittedMixture
from ae_toolkit.randomness import Source
from ae_toolkit.runs import checkpoint
from ae_toolkit.testing import check_part


def test_a_prior_may_see_the_encoder(tmp_path: Path) -> None:
    check_part("prior", "vamp")
    check_part("prior", "vamp", condition=True)
    run = fit(small(prior="vamp", train__epochs=1), tmp_path / "run", progress=False)
    assert len(load(run).sample(3)) == 3
    weights = checkpoint.load_weights(checkpoint.best(run).folder)  # type: ignore[union-attr]
    assert not any(name.startswith("bottleneck.prior.posterior") for name in weights)


def test_such_a_prior_needs_a_gaussian_posterior(tmp_path: Path) -> None:
    recipe = small(prior="vamp", bottleneck={"name": "deterministic", "z_dim": 2})
    with pytest.raises(
        UsageError, match=r"'vamp' needs the mean and the variance .* 'deterministic'"
    ):
        fit(recipe, tmp_path / "run", progress=False)


def test_a_mixture_finds_the_clusters_of_codes() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[4.0, 0.0], [-4.0, 1.0], [0.0, -5.0]])
    codes = centres.repeat(500, 1) + 0.3 * torch.randn(1500, 2)
    prior = FittedMixture(z_shapes=[(2,)], cond_dim=0, components=3)
    prior.fit((codes,), torch.zeros(1500, 0))
    step = Source(0, "test").step(0)
    (drawn,) = prior.sample(600, torch.zeros(600, 0), temperature=1.0, step=step)
    distance, nearest = torch.cdist(drawn, centres).min(1)
    assert distance.max() < 2 and nearest.bincount().min() > 150
    entropy = -prior.log_prob((codes,), torch.zeros(1500, 0)).mean()
    assert entropy.item() == pytest.approx(
        math.log(3) + math.log(2 * math.pi * math.e * 0.09), abs=0.1
    )


def test_a_prior_is_fitted_when_a_training_has_ended(tmp_path: Path) -> None:
    recipe = small(
        bottleneck={"name": "deterministic", "z_dim": 2},
        prior={"name": "fitted-mixture", "components": 4},
    )
    run = fit(recipe, tmp_path / "run", progress=False)
    best = checkpoint.best(run)
    assert best is not None
    prior = load(run).autoencoder.bottleneck.prior
    assert not torch.equal(prior.scale[0], torch.eye(2))
    codes = torch.cat([load(run).encode(load(run).sample(50, seed=1))])
    assert codes.std() > 0
    others = {point.folder for point in checkpoint.checkpoints(run)} - {best.folder}
    for folder in others:
        assert torch.equal(load(folder).autoencoder.bottleneck.prior.scale[0], torch.eye(2))
    before = (best.folder / "model.safetensors").read_bytes()
    fit(recipe, run, resume=True, progress=False)
    assert (best.folder / "model.safetensors").read_bytes() == before
    fit(recipe.with_({"train.epochs": 5}), run, resume=True, progress=False)
