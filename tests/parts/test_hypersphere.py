"""Codes on a sphere: their density, their cost, and a training with them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import small

from ae_toolkit import UsageError, fit, load
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.inference.evaluate import evaluate
from ae_toolkit.parts.hypersphere import PowerSpherical, UniformSphere, log_area
from ae_toolkit.randomness import Source

NUM = 50_000


def posterior(dim: int, concentration: list[float]) -> PowerSpherical:
    torch.manual_seed(dim)
    return PowerSpherical(
        F.normalize(torch.randn(len(concentration), dim), dim=1), torch.tensor(concentration)
    )


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_the_density_integrates_to_one(dim: int) -> None:
    assert log_area(2) == pytest.approx(math.log(2 * math.pi))
    assert log_area(3) == pytest.approx(math.log(4 * math.pi))
    q = posterior(dim, [0.5, 3.0, 10.0])
    points = F.normalize(torch.randn(NUM, dim), dim=1)
    ratio = (q.log_prob((1 + points @ q.mean.T) / 2) + log_area(dim)).exp()
    assert torch.allclose(ratio.mean(0), torch.ones(3), atol=0.06)


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_draws_come_from_the_density_and_cost_what_the_formula_says(dim: int) -> None:
    q = posterior(dim, [0.5, 3.0, 100.0, 2000.0])
    z, share = q.sample(NUM, Source(0, "test").step(0))
    assert torch.allclose(z.norm(dim=-1), torch.ones(NUM, 4), atol=1e-5)
    assert torch.allclose((z * q.mean).sum(-1), 2 * share - 1, atol=1e-5)
    kl = (q.log_prob(share) + log_area(dim)).mean(0)
    assert torch.allclose(q.kl(), kl, atol=0.03)
    # The mean direction is μ, and its length (α - β) / (α + β).
    length = q.concentration / (q.concentration + dim - 1)
    assert torch.allclose(z.mean(0), length[:, None] * q.mean, atol=0.02)
    # 1 / q over the draws integrates to the area of the sphere, where q is broad.
    inverse = (-q.log_prob(share)[:, 0]).exp().mean().log()
    assert float(inverse) == pytest.approx(log_area(dim), abs=0.05)


def test_gradients_of_draws_are_those_of_the_mean_direction() -> None:
    q = posterior(3, [4.0] * NUM)
    concentration = q.concentration.requires_grad_()
    share = q.sample(1, Source(0, "test").step(0))[1]
    (slope,) = torch.autograd.grad(2 * share.mean(), concentration)
    assert float(slope.sum()) == pytest.approx(2 / 6**2, rel=0.05)  # of κ / (κ + 2)
    assert slope.isfinite().all()


def test_new_codes_lie_all_over_the_sphere_and_at_one_point_when_cold() -> None:
    prior, c = UniformSphere(z_shapes=[(3,)]), torch.zeros(NUM, 0)
    (z,) = prior.sample(NUM, c, temperature=1.0, step=Source(0, "test").step(0))
    assert torch.allclose(z.norm(dim=1), torch.ones(NUM), atol=1e-5)
    assert z.mean(0).abs().max() < 0.02 and (z.T @ z / NUM - torch.eye(3) / 3).abs().max() < 0.02
    # By Archimedes each coordinate is uniform.
    assert float((z[:, 2] < 0.5).float().mean()) == pytest.approx(0.75, abs=0.01)
    (warm,) = prior.sample(NUM, c, temperature=0.5, step=Source(0, "test").step(0))
    (cold,) = prior.sample(2, c[:2], temperature=0.0, step=Source(0, "test").step(0))
    assert 0 < warm.std(0).mean() < z.std(0).mean() and torch.equal(cold[0], cold[1])


def test_a_model_on_a_sphere_is_trained_measured_and_sampled(tmp_path: Path) -> None:
    recipe = small(bottleneck={"name": "hypersphere", "z_dim": 3}, train__epochs=2)
    model = load(fit(recipe, tmp_path / "run", progress=False))
    report = evaluate(model, limit=100)
    assert report["rate"] > 0.1
    items = model.sample(5)
    codes = model.encode(items)
    assert torch.allclose(codes.norm(dim=1), torch.ones(5), atol=1e-5)
    assert len(model.interpolate(items[0], items[1], steps=3)) == 3


def test_spheres_of_one_dimension_and_other_priors_are_refused() -> None:
    for changes, sentence in (
        ({"bottleneck.z_dim": 1}, "z_dim must be at least 2"),
        ({"prior.name": "flow"}, "its prior is uniform on the sphere"),
    ):
        recipe = small(bottleneck={"name": "hypersphere"}).with_(changes)
        with pytest.raises(UsageError, match=f"bottleneck 'hypersphere': {sentence}"):
            Autoencoder(recipe, modality=recipe.make("modality"))
