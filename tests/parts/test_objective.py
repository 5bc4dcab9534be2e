"""What makes a loss: a constraint instead of a weight."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import small

from ae_toolkit import UsageError, fit, load
from ae_toolkit.contracts import Terms
from ae_toolkit.device import has_compiler
from ae_toolkit.parts.objective import GECO
from ae_toolkit.randomness import Source
from ae_toolkit.runs import checkpoint
from ae_toolkit.runs.checkpoint import load_weights


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
