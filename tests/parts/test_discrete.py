"""Likelihoods of levels and of counts: their masses, their draws, and trainings with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small
from torch import Tensor

from ae_toolkit import UsageError, fit, load, registry
from ae_toolkit.data.examples import Examples
from ae_toolkit.inference.evaluate import evaluate
from ae_toolkit.parts.discrete import DiscretisedLogistic, NegativeBinomial
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import Recipe
from ae_toolkit.testing.contracts import Tensors

LEVELS = torch.arange(256) / 255


@pytest.mark.parametrize("log_scale", [-1e4, -5.0, 0.0, 5.0, 1e4])
@pytest.mark.parametrize("components", [1, 3])
def test_the_masses_of_all_levels_add_up_and_have_slopes(components: int, log_scale: float) -> None:
    likelihood = DiscretisedLogistic(num_classes=0, components=components)
    torch.manual_seed(0)
    params = 2 * torch.randn(256, likelihood.num_params, 6)
    params[:] = params[:1].clone()  # some means lie beyond the ends
    params[:, -components:] = log_scale
    params.requires_grad_()
    nll = torch.stack(
        [likelihood.nll(params[..., i : i + 1], LEVELS[:, None], None) for i in range(6)]
    )
    assert torch.allclose((-nll).exp().sum(1), torch.ones(6), atol=1e-5)
    (slope,) = torch.autograd.grad(nll.sum(), params)
    assert nll.isfinite().all() and slope.isfinite().all()


def test_a_level_has_the_mass_of_its_interval_and_an_end_all_beyond() -> None:
    mean, scale = 0.3, 0.4  # of values in [-1, 1]
    params = torch.tensor([mean, 7 * math.atanh(math.log(scale) / 7)])[None, :, None]
    mass = [
        float((-DiscretisedLogistic(num_classes=0).nll(params, y[None, None], None)).exp())
        for y in LEVELS[[0, 100, 255]]
    ]
    edges = (2 * torch.tensor([0.5, 99.5, 100.5, 254.5]) / 255 - 1 - mean) / scale
    below = edges.double().sigmoid().tolist()
    assert mass == pytest.approx([below[0], below[2] - below[1], 1 - below[3]], rel=1e-4)


def test_what_is_drawn_lies_on_the_levels_as_often_as_they_have_mass() -> None:
    likelihood = DiscretisedLogistic(num_classes=0, levels=5, components=2)
    params = torch.tensor([1.0, 0.0, -0.5, 0.8, -1.5, -0.7])[None, :, None]
    num = 20_000
    levels = torch.arange(5)[:, None] / 4
    mass = (-likelihood.nll(params.expand(5, 6, 1), levels, None)).exp()
    many, step = params.expand(num, 6, 1), Source(0, "test").step(0)
    drawn = likelihood.sample(many, temperature=1.0, step=step)
    assert likelihood.supports(drawn)
    share = torch.bincount((4 * drawn).round().long().flatten(), minlength=5) / num
    assert torch.allclose(share, mass, atol=0.015)
    middle = likelihood.sample(params, temperature=0.0, step=step)
    weight = torch.tensor([1.0, 0.0]).softmax(0)
    expected = (1 + float(weight @ torch.tensor([-0.5, 0.8]))) / 2
    assert middle.item() == pytest.approx(expected, rel=1e-5)


def test_levels_are_told_from_what_lies_between() -> None:
    likelihood = DiscretisedLogistic(num_classes=0)
    assert likelihood.supports(torch.arange(256, dtype=torch.uint8).float() / 255)
    for wrong in (0.5, -1 / 255, 256 / 255, math.nan):
        assert not likelihood.supports(torch.tensor([0.0, wrong]))


@pytest.mark.parametrize("dispersion", ["learned", "predicted"])
def test_counts_have_the_mean_and_the_variance_of_a_negative_binomial(dispersion: str) -> None:
    likelihood = NegativeBinomial(num_classes=0, dispersion=dispersion)
    log_mean, log_theta = 16 * math.atanh(math.log(6) / 16), 8 * math.atanh(math.log(1.7) / 8)
    if dispersion == "learned":
        assert len([*likelihood.parameters()]) == 1
        torch.nn.init.constant_(likelihood.log_dispersion, log_theta)
    params = torch.tensor([log_mean, log_theta])[None, : likelihood.num_params, None]
    counts = torch.arange(2000.0)[:, None]
    found = -likelihood.nll(params.expand(2000, -1, 1), counts, None)
    expected = torch.distributions.NegativeBinomial(
        torch.tensor(1.7), logits=torch.tensor(6 / 1.7).log()
    )
    assert torch.allclose(found, expected.log_prob(counts[:, 0]), rtol=1e-4, atol=1e-3)
    drawn = likelihood.sample(
        params.expand(20_000, -1, 1), temperature=1.0, step=Source(0, "test").step(0)
    )
    assert likelihood.supports(drawn)
    assert float(drawn.mean()) == pytest.approx(6, rel=0.03)
    assert float(drawn.var()) == pytest.approx(6 + 36 / 1.7, rel=0.06)
    assert likelihood.sample(
        params, temperature=0.0, step=Source(0, "test").step(0)
    ).item() == pytest.approx(6, rel=1e-4)


def recipe_of(y: Tensor, likelihood: dict[str, Any], **train: Any) -> Recipe:
    """A small recipe for rows `(N, *shape)`, every tenth of them in the test split."""
    registry.modalities.register("tensors")(Tensors)

    @registry.datasets.register("rows")
    def rows(*, modality: Tensors, split: str) -> Examples:
        chosen = (torch.arange(len(y)) % 10 == 0) == (split == "test")
        return Examples(y[chosen], None, {}, [f"{split} {i}" for i in range(int(chosen.sum()))])

    return Recipe.of(
        {
            "name": "rows", "data": "rows",
            "modality": {"name": "tensors", "shape": list(y.shape[1:])},
            "encoder": {"name": "mlp", "hidden": [16]},
            "bottleneck": {"name": "gaussian", "z_dim": 2},
            "decoder": {"name": "mlp", "hidden": [16]}, "likelihood": likelihood,
            "train": {
                "epochs": 2, "batch_size": 32, "compile": "off", "evaluate_every": 99, **train,
            },
        }
    )  # fmt: skip


def test_a_model_of_levels_is_measured_in_bits_per_element(tmp_path: Path) -> None:
    recipe = small(likelihood={"name": "discretised-logistic"}, train__epochs=2)
    model = load(fit(recipe, tmp_path / "run", progress=False))
    report = evaluate(model, num_samples=5, limit=50)
    bits = 784 * math.log(2)
    assert report["bits_per_dim"] == pytest.approx(report["negative_elbo"] / bits)
    assert report["nll_bits_per_dim"] == pytest.approx(report["nll"] / bits)
    assert 0 < report["nll_bits_per_dim"] < 8  # which 256 levels cost that are all alike


def test_a_model_of_counts_learns_their_mean_and_draws_counts(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.tensor([1.0, 5.0, 30.0]).expand(600, 3), generator=generator)
    recipe = recipe_of(counts, {"name": "negative-binomial"}, epochs=30, lr=1e-2)
    model = load(fit(recipe, tmp_path / "run", progress=False))
    means = torch.stack(model.sample(50)).mean(0)
    assert torch.allclose(means, counts.mean(0), rtol=0.3)
    assert evaluate(model)["negative_elbo"] > 0
    drawn = torch.stack(model.decode(torch.zeros(20, 2), temperature=1.0))
    assert torch.equal(drawn, drawn.round()) and drawn.std() > 0


@pytest.mark.parametrize(
    ("name", "wrong", "sentence"),
    [
        (
            "negative-binomial",
            -3.0,
            "is for counts, whole numbers from 0 on, and the data holds -3",
        ),
        ("negative-binomial", 2.5, "the data holds 2.5"),
        ("discretised-logistic", 0.5, "is for 256 evenly spaced values from 0 to 1"),
        ("bernoulli", 0.25, "is for zeros and ones, and the data holds 0.25"),
    ],
)
def test_data_that_a_likelihood_is_not_for_is_refused_before_training(
    name: str, wrong: float, sentence: str, tmp_path: Path
) -> None:
    y = torch.zeros(100, 3)
    y[57, 1] = wrong
    with pytest.raises(UsageError, match=f"likelihood '{name}' .*{sentence}"):
        fit(recipe_of(y, {"name": name}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_distortion_is_taken_of_any_values(tmp_path: Path) -> None:
    fit(recipe_of(torch.rand(100, 3), {"name": "cross-entropy"}), tmp_path / "a", progress=False)
