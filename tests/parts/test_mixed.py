"""Tables whose columns are of several kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as D

from ae_toolkit import UsageError, fit, load, registry
from ae_toolkit.data.examples import Examples
from ae_toolkit.inference.evaluate import evaluate
from ae_toolkit.parts.mixed import Mixed
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import Recipe, parse_settings
from ae_toolkit.testing.contracts import Tensors

COLUMNS = (
    {"name": "gaussian", "variance": "predicted"},
    "bernoulli",
    {"name": "categorical", "num_classes": 3},
)


def table(num: int = 200) -> Tensor:
    """Rows of which all columns say the same: a number, whether it is positive, and its third."""
    number = torch.randn(num, generator=torch.Generator().manual_seed(0))
    third = torch.bucketize(number, torch.tensor([-0.5, 0.5]))
    return torch.stack([number, (number > 0).float(), third.float()], 1)


def recipe_of(y: Tensor, columns: Any = COLUMNS, **train: Any) -> Recipe:
    registry.modalities.register("tensors")(Tensors)
    registry.datasets.register("table")(
        lambda *, modality, split: Examples(y, None, {}, [f"{split} {i}" for i in range(len(y))])
    )
    return Recipe.of(
        {
            "name": "table", "data": "table",
            "modality": {"name": "tensors", "shape": list(y.shape[1:])},
            "encoder": {"name": "mlp", "hidden": [16]},
            "bottleneck": {"name": "gaussian", "z_dim": 2},
            "decoder": {"name": "mlp", "hidden": [16]},
            "likelihood": {"name": "mixed", "columns": columns},
            "train": {
                "epochs": 2, "batch_size": 20, "compile": "off", "evaluate_every": 99, **train,
            },
        }
    )  # fmt: skip


def test_each_column_pays_by_its_own_likelihood() -> None:
    mixed, y = Mixed(num_classes=0, columns=COLUMNS), table(7)
    assert mixed.num_params == 3 and mixed.is_density and mixed.supports(y)
    params = torch.randn(7, 3, 3)
    std = (6 * torch.tanh(params[:, 1, 0] / 12)).exp()
    expected = -(
        D.Normal(params[:, 0, 0], std).log_prob(y[:, 0])
        + D.Bernoulli(logits=params[:, 0, 1]).log_prob(y[:, 1])
        + D.Categorical(logits=params[:, :, 2]).log_prob(y[:, 2])
    )
    assert torch.allclose(mixed.nll(params, y, None), expected, atol=1e-5)
    mask = torch.tensor([[True, True, False]]).expand(7, 3)
    last = -D.Categorical(logits=params[:, :, 2]).log_prob(y[:, 2])
    assert torch.allclose(mixed.nll(params, y, mask), expected - last, atol=1e-5)


def test_a_column_with_a_distortion_makes_one_of_the_whole() -> None:
    mixed = Mixed(num_classes=0, columns=("squared-error", "bernoulli"))
    assert not mixed.is_density and not mixed.supports(torch.ones(2, 2))
    assert not mixed.misfit(torch.ones(2, 2)) and mixed.misfit(torch.full((2, 2), 0.5))


def test_a_table_is_learned_column_by_column(tmp_path: Path) -> None:
    y = table(400)
    model = load(fit(recipe_of(y, epochs=30, lr=5e-3), tmp_path / "run", progress=False))
    report = evaluate(model, num_samples=20)
    assert report["is_density"] and report["nll"] < report["negative_elbo"]
    # What independent columns would cost: a normal's, a coin's and a die's entropy.
    apart = 1.42 + 0.69 + D.Categorical(torch.bincount(y[:, 2].long()) / 400).entropy().item()
    assert report["negative_elbo"] < apart
    rows = torch.stack(model.reconstruct([*y]))
    assert (rows[:, 2] == y[:, 2]).float().mean() > 0.9
    assert ((rows[:, 1] > 0.5) == (y[:, 1] > 0.5)).float().mean() > 0.9
    drawn = model.decode_tensor(torch.zeros(50, 2), temperature=1.0)
    assert model.autoencoder.likelihood.supports(drawn)


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        (2, 3.0, r"columns\[2\] is for classes from 0 to 2, and the data holds 3"),
        (2, 0.5, r"columns\[2\] .* the data holds 0.5"),
        (1, 2.0, r"columns\[1\] is for zeros and ones, and the data holds 2"),
    ],
)
def test_a_column_that_does_not_fit_is_named_before_training(
    column: int, value: float, sentence: str, tmp_path: Path
) -> None:
    y = table()
    y[150, column] = value
    with pytest.raises(UsageError, match=f"likelihood 'mixed' cannot take the data: {sentence}"):
        fit(recipe_of(y), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (["gaussian", {"name": "categorical", "num_classes": 1}], r"columns\[1\]: .* two classes"),
        (["gaussian", "gausian"], r"columns\[1\]: there is no likelihood 'gausian'"),
        ([{"name": "gaussian", "sd": 1}], r"columns\[0\]: .* there is no setting 'sd'"),
        ([{"name": "bernoulli", "num_classes": "two"}], r"columns\[0\]: .* a whole number"),
        ([], "columns"),
        (["gaussian", "bernoulli"], r"has 2 columns, and is for data of the shape \(2,\)"),
    ],
)
def test_columns_that_make_no_sense_are_one_sentence(
    columns: list[Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"likelihood 'mixed'.*{sentence}"):
        fit(recipe_of(table(), columns), tmp_path / "run", progress=False)


def test_columns_are_written_on_the_command_line() -> None:
    recipe = recipe_of(table())
    text = '["gaussian", "bernoulli", {"name": "categorical", "num_classes": 4}]'
    made = recipe.with_(parse_settings([f"likelihood.columns={text}"])).make(
        "likelihood", num_classes=0
    )
    step = Source(0, "test").step(0)
    assert made.sample(torch.zeros(5, 4, 3), temperature=1.0, step=step).shape == (5, 3)
