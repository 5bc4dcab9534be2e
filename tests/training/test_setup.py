"""What a training begins with: weights of another, frozen parts, statistics of its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small
from torch import Tensor

from ae_toolkit import Examples, UsageError, fit, load, registry
from ae_toolkit.contracts import Callback
from ae_toolkit.inference.model import Model
from ae_toolkit.recipe import Recipe
from ae_toolkit.runs import checkpoint
from ae_toolkit.testing.contracts import Tensors

FROZEN = {"encoder": 0.0}


class Beginning(Callback):
    """Keeps the weights that a training begins with."""

    def on_start(self, training: Any) -> None:
        state = training.setup.model.state_dict()
        self.weights = {name: weight.clone() for name, weight in state.items()}


def weights_of(run: Path) -> dict[str, Tensor]:
    point = checkpoint.best(run)
    assert point is not None
    return checkpoint.load_weights(point.folder)


@pytest.mark.parametrize("compiled", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_a_training_begins_with_the_weights_of_another_and_freezes_parts(
    run: Path, tmp_path: Path, compiled: str
) -> None:
    recipe = small(train__lr_scale=FROZEN, train__epochs=1, train__compile=compiled)
    new = fit(recipe, tmp_path / "new", init_from=run, progress=False)
    before, after = weights_of(run), weights_of(new)
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) == name.startswith("encoder."), name
    again = fit(recipe, tmp_path / "again", init_from=run, progress=False)
    assert all(torch.equal(weight, after[name]) for name, weight in weights_of(again).items())


def test_frozen_weights_stay_when_a_training_goes_on(run: Path, tmp_path: Path) -> None:
    recipe = small(train__lr_scale=FROZEN, train__epochs=1)
    new = fit(recipe, tmp_path / "new", init_from=run, progress=False)
    fit(recipe.with_({"train.epochs": 2}), new, resume=True, progress=False)
    for point in checkpoint.checkpoints(new):
        after = checkpoint.load_weights(point.folder)
        for name, weight in weights_of(run).items():
            assert torch.equal(weight, after[name]) or not name.startswith("encoder."), name


def test_weights_that_do_not_fit_are_made_anew(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small(bottleneck__z_dim=3, train__epochs=0.1, train__lr=1e-9, train__ema=0)
    new = weights_of(fit(recipe, tmp_path / "new", init_from=run))
    name = next(name for name in new if name.startswith("encoder.") and new[name].dim() == 2)
    assert torch.allclose(new[name], weights_of(run)[name], atol=1e-6)
    said = capsys.readouterr().err
    assert "weights are those of" in said and "bottleneck.heads.0.linear.weight" in said


def test_what_holds_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no model whose weights could be taken"):
        fit(small(), tmp_path / "run", init_from=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"encodr": 0.0}, "nothing with weights is called 'encodr': did you mean 'encoder'"),
        ({"encoder": 0, "decoder": 0, "bottleneck": 0}, "none would learn"),
    ],
)
def test_learning_rates_of_parts_that_make_no_sense(
    scales: Mapping[str, float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        fit(small(train__lr_scale=scales), tmp_path / "run", progress=False)


def test_a_part_has_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    """By plain gradient descent a step is as long as the learning rate says."""
    moved = {}
    for scale in (1.0, 3.0):
        recipe = small(
            train__optimizer="sgd", train__epochs=0.05, train__ema=0, train__lr=1e-4,
            train__schedule="constant", train__warmup=0, train__validation=0,
            train__lr_scale={"decoder": scale, "decoder.layers": scale},
        )  # fmt: skip
        first = Beginning()
        run = fit(recipe, tmp_path / str(scale), callbacks=[first], progress=False)
        moved[scale] = {name: w - first.weights[name] for name, w in weights_of(run).items()}
    for name, change in moved[1.0].items():
        factor = 3 if name.startswith("decoder.") else 1
        assert torch.allclose(moved[3.0][name], factor * change, rtol=0.2, atol=1e-6), name


class Standardised(Tensors):
    """Numbers that are brought to mean 0 and variance 1 by what the data says."""

    def __init__(self, *, mean: float | None = None, std: float = 1.0):
        super().__init__(shape=(6,))
        self.mean, self.std = mean, std

    def statistics(self, examples: Examples) -> dict[str, Any]:
        return {"mean": float(examples.y.mean()), "std": float(examples.y.std())}

    def prepare(self, y: Tensor) -> Tensor:
        return (y.float() - (self.mean or 0.0)) / self.std

    def from_tensor(self, y: Tensor, *, like: Any = None, labels: Any = None) -> Tensor:
        return y * self.std + (self.mean or 0.0)


def measured(*, modality: Standardised, split: str) -> Examples:
    generator = torch.Generator().manual_seed(int(split == "test"))
    y = 100 + 20 * torch.randn(200, 6, generator=generator)
    return Examples(y, None, {}, [str(i) for i in range(200)])


def test_a_data_type_takes_statistics_of_its_data(tmp_path: Path) -> None:
    registry.modalities.register("standardised")(Standardised)
    registry.datasets.register("measured")(measured)
    recipe = Recipe.of(
        {
            "name": "measured",
            "data": "measured",
            "modality": "standardised",
            "encoder": {"name": "mlp", "hidden": [16]},
            "bottleneck": {"name": "gaussian", "z_dim": 2},
            "decoder": {"name": "mlp", "hidden": [16]},
            "likelihood": "squared-error",
            "train": {"epochs": 1, "batch_size": 32, "validation": 0.1},
        }
    )
    run = fit(recipe, tmp_path / "run", progress=False)
    model: Model = load(run)
    assert model.recipe.modality.arguments["mean"] == pytest.approx(100, abs=3)
    assert model.recipe.modality.arguments["std"] == pytest.approx(20, abs=2)
    assert float(torch.stack(model.sample(50)).mean()) == pytest.approx(100, abs=20)
    fit(recipe.with_({"train.epochs": 2}), run, resume=True, progress=False)
    other = fit(recipe.with_({"modality.mean": 7.0}), tmp_path / "other", progress=False)
    assert load(other).recipe.modality.arguments["mean"] == 7.0


class Spelled(Tensors):
    """Letters, stored as code points; their numbers follow from the data."""

    def __init__(self, *, letters: str = ""):
        super().__init__(shape=(4,), num_classes=max(len(letters), 1))
        self.letters = letters

    def statistics(self, examples: Examples) -> dict[str, Any]:
        return {"letters": "".join(map(chr, examples.y.unique().tolist()))}

    def prepare(self, y: Tensor) -> Tensor:
        return torch.tensor([[self.letters.index(chr(v)) for v in row] for row in y.tolist()])


def spelled(*, modality: Spelled, split: str) -> Examples:
    words = ["abba", "baca", "caba", "acab"] * 10
    y = torch.tensor([[ord(letter) for letter in word] for word in words])
    return Examples(y, None, {}, [f"{split} {i}" for i in range(len(words))])


def test_a_vocabulary_is_taken_from_the_data(tmp_path: Path) -> None:
    registry.modalities.register("spelled")(Spelled)
    registry.datasets.register("spelled")(spelled)
    settings = {
        "name": "spelled", "data": "spelled", "modality": "spelled",
        "encoder": {"name": "mlp", "hidden": [8]}, "bottleneck": {"name": "gaussian", "z_dim": 2},
        "decoder": {"name": "mlp", "hidden": [8]}, "likelihood": "categorical",
        "train": {"epochs": 1, "batch_size": 8, "compile": "off"},
    }  # fmt: skip
    model = load(fit(Recipe.of(settings), tmp_path / "run", progress=False))
    assert model.modality.letters == "abc" and model.modality.num_classes == 3


def test_a_codebook_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    bottleneck = {"name": "vq", "z_dim": 1, "codebook_size": 5000}
    recipe = small(bottleneck=bottleneck, prior="categorical")
    with pytest.raises(UsageError, match=r"has 5,000 values, and \d+ examples make \d+ codes"):
        fit(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
