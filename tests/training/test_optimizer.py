"""Update rules: the registered ones, and one of a user's own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small
from torch import nn

from ae_toolkit import UsageError, fit, load, registry
from ae_toolkit.contracts import Callback
from ae_toolkit.device import has_compiler
from ae_toolkit.recipe import Train
from ae_toolkit.runs import checkpoint
from ae_toolkit.training.optimizer import EMAOptimizer, StepCoefficients


def moved(optimizer: EMAOptimizer, layer: nn.Module, *, lr: float, steps: int = 3) -> None:
    torch.manual_seed(1)
    for row in optimizer.coefficients([lr] * steps, first=0, steps=steps):
        layer(torch.randn(8, 4)).square().sum().backward()
        optimizer.step(StepCoefficients(*row.unbind()))


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_sgd_is_that_of_pytorch(clip: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    its = copy.deepcopy(layer)
    train = Train(optimizer="sgd", lr=0.01, clip=clip, ema=0.0)
    moved(EMAOptimizer(layer, copy.deepcopy(layer), train), layer, lr=0.01)
    torch.manual_seed(1)
    theirs = torch.optim.SGD(its.parameters(), lr=0.01, momentum=train.betas[0])
    for _ in range(3):
        theirs.zero_grad()
        its(torch.randn(8, 4)).square().sum().backward()
        if clip:
            nn.utils.clip_grad_norm_(its.parameters(), clip)
        theirs.step()
    assert torch.allclose(layer.weight, its.weight) and torch.allclose(layer.bias, its.bias)


def test_adamw_by_its_rule_is_that_of_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 3) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    train = Train(weight_decay=0.1)
    for layer, is_fused in zip(layers, (True, False), strict=True):
        optimizer = EMAOptimizer(layer, copy.deepcopy(layer), train)
        if not is_fused:
            monkeypatch.setattr(optimizer, "_move_fused", optimizer._move)
        moved(optimizer, layer, lr=0.05)
    assert torch.allclose(layers[0].weight, layers[1].weight, atol=1e-6)


def lion(weight, grad, first, second, *, now, betas) -> None:
    weight.sub_(now.lr * first.lerp(grad, 1 - betas[0]).sign())
    first.lerp_(grad, 1 - betas[1])


@pytest.mark.parametrize("compile", ["off", pytest.param("on", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "lr"), [("sgd", 1e-4), ("lion", 2e-4)])
def test_a_training_by_another_rule(name: str, lr: float, compile: str, tmp_path: Path) -> None:
    if compile == "on" and not has_compiler(torch.device("cpu")):
        pytest.skip("compiling needs a C++ compiler, and none is here")
    registry.optimizers.register("lion")(lion)
    recipe = small(train__optimizer=name, train__lr=lr, train__epochs=2, train__compile=compile)
    run = fit(recipe, tmp_path / "run", progress=False)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (row["loss"] for row in rows if row["split"] == "train")
    assert last < first


class Stopping(Callback):
    def on_validation(self, training: Any) -> None:
        if training.report.epoch == 1:
            raise ZeroDivisionError


def test_resumed_by_another_rule_to_the_same_bits(tmp_path: Path) -> None:
    recipe = small(train__optimizer="sgd", train__lr=1e-4, train__epochs=2)
    whole = fit(recipe, tmp_path / "whole", progress=False)
    with pytest.raises(ZeroDivisionError):
        fit(recipe, tmp_path / "parts", progress=False, callbacks=[Stopping()])
    parts = fit(recipe, tmp_path / "parts", progress=False, resume=True)
    mine, its = (checkpoint.load_weights(checkpoint.best(run).folder) for run in (whole, parts))
    assert all(torch.equal(mine[name], its[name]) for name in mine)


def test_no_such_rule(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no optimizer 'adam': did you mean 'adamw'"):
        fit(small(train__optimizer="adam"), tmp_path / "run", progress=False)
    assert not [*tmp_path.iterdir()]


def test_a_model_is_loaded_without_the_rule_that_trained_it(tmp_path: Path) -> None:
    with registry.optimizers.temporarily(lion=lion):
        run = fit(small(train__optimizer="lion", train__epochs=1), tmp_path / "run", progress=False)
    assert len(load(run).sample(2)) == 2
