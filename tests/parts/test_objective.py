"""What makes a loss: a constraint instead of a weight, and gradients of many samples."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import small

from ae_toolkit import UsageError, fit, load, registry
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import Batch, Terms
from ae_toolkit.device import has_compiler
from ae_toolkit.parts.objective import GECO
from ae_toolkit.randomness import Source
from ae_toolkit.runs import checkpoint
from ae_toolkit.runs.checkpoint import load_weights
from ae_toolkit.testing.contracts import Tensors, tiny_recipe


def terms(distortion: float, rate: float = 2.0) -> Terms:
    return Terms(torch.full((1, 4), distortion), torch.full((1, 4, 1), rate), torch.zeros(4))


def test_the_multiplier_grows_while_the_distortion_is_too_large_and_shrinks_after() -> None:
    geco, step = GECO(tolerance=10.0, speed=0.1, decay=0.5), Source(0, "test").step(0)
    loss = geco(terms(10.5), step)
    assert loss.tolist() == pytest.approx([math.exp(0.05) * 0.5 + 2] * 4)
    geco(terms(9.5), step)  # the average is at the tolerance
    assert geco.log_multiplier.item() == pytest.approx(0.05)
    geco(terms(9.6), step)
    assert geco.log_multiplier.item() == pytest.approx(0.05 - 0.1 * 0.2)
    geco(terms(1e9), step)
    assert geco.log_multiplier.item() == pytest.approx(0.03 + 0.1)


def test_a_validation_leaves_the_multiplier_and_counts_only_what_is_beyond() -> None:
    geco, step = GECO(tolerance=10.0).eval(), Source(0, "test").step(0)
    assert geco(terms(15.0), step).tolist() == [7.0] * 4
    assert geco(terms(5.0), step).tolist() == [2.0] * 4
    assert geco.log_multiplier == 0 and geco.average.isinf()


def test_a_training_ends_where_it_is_asked_to(tmp_path: Path) -> None:
    recipe = small(
        objective={"name": "geco", "tolerance": 48.0, "speed": 0.05, "decay": 0.9},
        train__epochs=25, train__evaluate_every=5, train__schedule="constant",
        train__compile="off",
    )  # fmt: skip
    run = fit(recipe, tmp_path / "run", progress=False)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    means = [row for row in lines if row["split"] == "train"]
    assert means[-1]["distortion"] == pytest.approx(48, rel=0.02)
    assert means[-1]["rate"] < 0.5 * means[1]["rate"], "what is not needed is given up"
    model = load(run)
    assert model.autoencoder.objective.log_multiplier != 0 and len(model.sample(2)) == 2


def weights_of(run: Path) -> bytes:
    return (checkpoint.checkpoints(run)[-1].folder / checkpoint.WEIGHTS_FILE).read_bytes()


def test_the_multiplier_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    recipe = small(
        objective={"name": "geco", "tolerance": 40.0}, train__epochs=2, train__compile="off"
    )
    whole = fit(recipe, tmp_path / "whole", progress=False)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    first, last = checkpoint.checkpoints(cut)
    shutil.rmtree(last.folder)
    multiplier = load_weights(first.folder)["objective.log_multiplier"]
    fit(recipe, cut, resume=True, progress=False)
    assert weights_of(cut) == weights_of(whole)
    assert load_weights(checkpoint.checkpoints(cut)[-1].folder)["objective.log_multiplier"] > (
        multiplier
    )


def test_a_compiled_multiplier_is_that_of_an_eager_one(tmp_path: Path) -> None:
    if not has_compiler(torch.device("cpu")):
        pytest.skip("needs a C++ compiler")
    found = {}
    for compile in ("on", "off"):
        recipe = small(
            objective={"name": "geco", "tolerance": 40.0}, train__epochs=1, train__compile=compile
        )
        run = fit(recipe, tmp_path / compile, progress=False)
        weights = load_weights(checkpoint.checkpoints(run)[-1].folder)
        found[compile] = [float(weights[f"objective.{n}"]) for n in ("log_multiplier", "average")]
    assert found["on"] == pytest.approx(found["off"], rel=1e-4)
    assert found["on"][0] > 0


def test_a_constraint_needs_a_tolerance() -> None:
    with pytest.raises(UsageError, match="objective 'geco': the setting 'tolerance' is missing"):
        small(objective="geco").check()


# A linear Gaussian autoencoder, y = W z + noise, whose posterior is known.

WEIGHT, STD, BATCH = torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.0, 0.0]]), 0.5, 3


def linear(objective: dict[str, object], *, shift: float, stl: bool) -> Autoencoder:
    """Its mean is off by `shift`, and by a positive one its variance is twice the right one too."""
    registry.modalities.register("tensors")(Tensors)
    registry.datasets.register("tensors")(lambda *, modality, split: None)
    recipe = tiny_recipe(shape=(3,), changes={
        "encoder.hidden": [], "bottleneck": {"name": "gaussian", "z_dim": 2, "stl": stl},
        "decoder.hidden": [], "likelihood": {"name": "gaussian", "std": STD},
        "objective": objective,
    })  # fmt: skip
    model = Autoencoder(recipe, modality=recipe.make("modality"))
    variance = 1 / (WEIGHT.square().sum(0) / STD**2 + 1)
    logvar = 10 * torch.atanh((variance * (1 + (shift > 0))).log() / 10)
    with torch.no_grad():
        head = model.bottleneck.heads[0].linear
        to_mean = variance[:, None] * WEIGHT.T / STD**2
        head.weight.copy_(torch.cat([to_mean, torch.zeros(2, 3)]))
        head.bias.copy_(torch.cat([torch.full((2,), shift), logvar]))
        model.decoder.head.weight.copy_(WEIGHT)
        model.decoder.head.bias.zero_()
    return model


def gradients(model: Autoencoder, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of as many draws: those of the encoder, and those of the decoder, `(num, …)`."""
    y = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(0))
    batch, source, found = Batch(y, None, {}), Source(0, "test"), []
    weights = [model.bottleneck.heads[0].linear.weight, model.decoder.head.weight]
    for index in range(num):
        step = source.step(index)
        terms = model(batch, step, num_samples=model.objective.num_samples).terms
        loss = model.objective(terms, step).mean()
        found.append([slope.flatten() for slope in torch.autograd.grad(loss, weights)])
    encoder, decoder = (torch.stack(column) for column in zip(*found, strict=True))
    return encoder, decoder


def test_dreg_has_the_gradient_of_iwae_in_the_mean_and_less_noise() -> None:
    num, iwae = 400, {"name": "iwae", "num_samples": 8}
    plain = gradients(linear(iwae, shift=0.2, stl=False), num)
    dreg = gradients(linear({**iwae, "dreg": True}, shift=0.2, stl=True), num)
    for mine, its in zip(dreg, plain, strict=True):
        error = ((mine.var(0) + its.var(0)) / num).sqrt()
        assert ((mine.mean(0) - its.mean(0)).abs() < 4 * error + 1e-6).all()
    assert dreg[0].mean(0).abs().max() > 0.01
    assert dreg[0].var(0).sum() < 0.5 * plain[0].var(0).sum()
    assert torch.allclose(dreg[1], plain[1], atol=1e-5), "the decoder's is the same"


def test_stl_leaves_no_noise_where_the_posterior_is_right() -> None:
    elbo = {"name": "elbo"}
    noisy, still = (
        gradients(linear({**elbo, "num_samples": 2}, shift=0.0, stl=on), 20)[0]
        for on in (False, True)
    )
    assert still.abs().max() < 1e-4 < 1e-2 < noisy.abs().max()
    # With one sample the rate is that sample's, not the KL in closed form.
    assert gradients(linear(elbo, shift=0.0, stl=True), 20)[0].abs().max() < 1e-4


def test_dreg_says_what_it_needs(tmp_path: Path) -> None:
    recipe = small(objective={"name": "iwae", "dreg": True}, train__epochs=1)
    with pytest.raises(UsageError, match=r"'iwae' with dreg needs --set bottleneck.stl=true"):
        fit(recipe, tmp_path / "refused", progress=False)
    fit(recipe.with_({"bottleneck.stl": True}), tmp_path / "run", progress=False)


@pytest.mark.slow
def test_compiled_gradients_are_weighed_too(tmp_path: Path) -> None:
    if not has_compiler(torch.device("cpu")):
        pytest.skip("needs a C++ compiler")
    found = {}
    for compile, dreg in (("on", True), ("off", True), ("off", False)):
        recipe = small(
            objective={"name": "iwae", "dreg": dreg}, bottleneck__stl=True,
            train={"epochs": 1, "optimizer": "sgd", "lr": 1e-5, "ema": 0.0, "compile": compile},
        )  # fmt: skip
        run = fit(recipe, tmp_path / f"{compile} {dreg}", progress=False)
        weights = load_weights(checkpoint.checkpoints(run)[-1].folder)
        found[compile, dreg] = weights["encoder.layers.0.bias"]
    compiled, eager, plain = found.values()
    assert torch.allclose(compiled, eager, rtol=0, atol=1e-7)
    assert not torch.allclose(compiled, plain, rtol=0, atol=1e-6)
