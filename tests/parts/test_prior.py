"""Priors: one that sees the encoder, and one that is fitted when a training has ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import small
from torch import Tensor, nn

from ae_toolkit import UsageError, fit, load, registry
from ae_toolkit.contracts import Posterior, Shape, StepContext, flatten, unflatten
from ae_toolkit.parts.prior import FittedMixture
from ae_toolkit.randomness import Source
from ae_toolkit.runs import checkpoint
from ae_toolkit.testing import check_part


class Vamp(nn.Module):
    """A mixture of posteriors of examples that are learned (Tomczak and Welling 2018)."""

    def __init__(
        self,
        *,
        z_shapes: Sequence[Shape],
        cond_dim: int,
        in_shape: Shape,
        posterior: Callable[[Tensor, Tensor], Posterior],
        components: int = 8,
    ):
        super().__init__()
        self.z_shapes, self.posterior, self.cond_dim = tuple(z_shapes), posterior, cond_dim
        self.examples = nn.Parameter(torch.rand(components, *in_shape))

    def mixture(self) -> Posterior:
        c = self.examples.new_zeros(len(self.examples), self.cond_dim)
        return self.posterior(self.examples, c)

    def log_prob(self, z: tuple[Tensor, ...], c: Tensor) -> Tensor:
        mean, logvar = self.mixture()
        square = (flatten(z)[:, None] - mean).square() * torch.exp(-logvar)
        each = -0.5 * (square + logvar + math.log(2 * math.pi)).sum(2)
        return each.logsumexp(1, keepdim=True) - math.log(len(mean))

    def kl(self, posterior: Posterior, c: Tensor) -> None:
        return None

    def sample(
        self, num: int, c: Tensor, *, temperature: float, step: StepContext
    ) -> tuple[Tensor, ...]:
        mean, logvar = self.mixture()
        chosen = (step.rand((num,)) * len(mean) * min(temperature, 1)).long()
        noise = temperature * step.randn((num, mean.shape[1]))
        return unflatten(mean[chosen] + torch.exp(0.5 * logvar[chosen]) * noise, self.z_shapes)


@pytest.fixture
def vamp() -> None:
    registry.priors.register("vamp")(Vamp)


def test_a_prior_may_see_the_encoder(vamp: None, tmp_path: Path) -> None:
    check_part("prior", "vamp")
    check_part("prior", "vamp", condition=True)
    run = fit(small(prior="vamp", train__epochs=1), tmp_path / "run", progress=False)
    assert len(load(run).sample(3)) == 3
    weights = checkpoint.load_weights(checkpoint.best(run).folder)  # type: ignore[union-attr]
    assert not any(name.startswith("bottleneck.prior.posterior") for name in weights)


def test_such_a_prior_needs_a_gaussian_posterior(vamp: None, tmp_path: Path) -> None:
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
