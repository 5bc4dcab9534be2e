"""The judge: measures of codes and samples on cases whose answers are known, and on a model."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small, untrained

from ae_toolkit import load
from ae_toolkit.contracts import Posterior
from ae_toolkit.inference import distances, evaluate, judging


@pytest.fixture(scope="module")
def halves() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2000, 4), torch.randn(2000, 4)


def test_nothing_tells_two_halves_of_one_distribution_apart(halves) -> None:
    a, b = halves
    assert abs(distances.maximum_mean_discrepancy(a, b)) < 2e-3
    assert distances.told_apart(a, b) == pytest.approx(0.5, abs=0.05)
    assert distances.frechet_distance(a, b) < 0.05
    mean, error = distances.kernel_distance(a, b)
    assert abs(mean) < 5 * error + 1e-2
    precision, recall = distances.precision_recall(a, b)
    assert precision > 0.9 and recall > 0.9


def test_what_is_wider_is_told_apart(halves) -> None:
    a, b = halves[0], 2 * halves[1]
    assert distances.maximum_mean_discrepancy(a, b) > 0.02
    assert distances.told_apart(a, b) > 0.65
    # Of Gaussians: the squared distance of means, and of standard deviations.
    assert distances.frechet_distance(a, b) == pytest.approx(4.0, rel=0.1)
    assert distances.frechet_distance(a, halves[1] + 1) == pytest.approx(4.0, rel=0.1)
    assert distances.kernel_distance(a, b)[0] > 0.1
    precision, recall = distances.precision_recall(a, b)
    assert precision < 0.7 < recall


def test_samples_of_one_kind_only_have_precision_without_recall() -> None:
    torch.manual_seed(0)
    data = torch.randn(1000, 2) + torch.tensor([[8.0, 0], [-8.0, 0]]).repeat(500, 1)
    made = torch.randn(1000, 2) + torch.tensor([8.0, 0])
    precision, recall = distances.precision_recall(data, made)
    assert precision > 0.9 and recall == pytest.approx(0.5, abs=0.06)
    expected = (data - made[0]).norm(dim=1).min()
    assert torch.allclose(distances.nearest(made[:1], data)[0], expected, rtol=1e-3)


def test_mutual_information_of_gaussians_is_what_theory_says() -> None:
    """x is its code and noise: I = log(total variance / noise variance) / 2 for each number."""
    torch.manual_seed(0)
    mean, std = torch.randn(4000, 2), 0.5
    posterior = Posterior(mean, torch.full_like(mean, 2 * math.log(std)))
    z = mean + std * torch.randn_like(mean)
    expected = math.log((1 + std**2) / std**2)
    assert judging.mutual_information(z, posterior) == pytest.approx(expected, abs=0.05)
    far = Posterior(1000 * mean, posterior.logvar)
    assert judging.mutual_information(1000 * mean, far) == pytest.approx(math.log(4000), abs=0.2)


def test_a_linear_probe_reads_what_is_linear(halves) -> None:
    a, _ = halves
    assert judging.linear_accuracy(a, (a[:, 0] > 0).long()) > 0.97
    assert judging.linear_accuracy(a, (a.norm(dim=1) > 1.8).long()) < 0.7


def test_real_digits_are_nearer_to_digits_than_noise_is(run: Path) -> None:
    model = load(run)
    report = evaluate.evaluate(model, full=True)
    samples = report["samples"]
    assert samples["num_samples"] == 200
    # A model of 800 digits and four epochs is far from what real digits are to each other.
    assert samples["frechet"] > 3 * samples["frechet_of_data"] > 0
    assert samples["kernel"] > samples["kernel_of_data"] + samples["kernel_standard_error"]
    assert 0 <= samples["recall"] < 0.6 and 0 <= samples["precision"] <= 1
    assert samples["copies"] <= 0.2
    assert 0.4 <= report["codes"]["prior_told_apart"] <= 1
    assert report["codes"]["mutual_information"] <= report["codes"]["mutual_information_limit"]
    assert report["linear_probes"]["digit"] > 0.2
    errors = report["standard_errors"]
    assert errors["distortion_plus_rate"] == pytest.approx(
        report["distortion_plus_rate"] / 40, rel=0.9
    )


def test_a_copyist_is_found_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that are examples of the training split have every virtue, and are copies."""
    from ae_toolkit.data.examples import load_data

    model = load(run)
    train = load_data(model.recipe, model.modality, "train")
    test = load_data(model.recipe, model.modality, "test")
    learned = model.modality.prepare(train.y[:200])
    monkeypatch.setattr(type(model), "decode_tensor", lambda *given, **named: learned)
    found = judging.judge_samples(model, test, train, num_samples=200, seed=0)
    assert found["copies"] > 0.9
    assert found["frechet"] < 2 * found["frechet_of_data"]


def test_a_conditional_model_is_asked_for_each_class(tmp_path: Path) -> None:
    recipe = small(condition=["digit"])
    model = load(untrained(recipe, tmp_path / "model"))
    asked = evaluate.evaluate(model, full=True)["samples"]["read_as_asked"]
    assert set(asked) == {"digit"} and asked["digit"] < 0.35


def test_integers_are_counted(tmp_path: Path) -> None:
    bottleneck = {"name": "fsq", "z_dim": 2, "num_levels": [3, 2]}
    recipe = small(bottleneck=bottleneck, prior="categorical")
    codes = evaluate.evaluate(load(untrained(recipe, tmp_path / "model")), full=True)["codes"]
    assert 0 < codes["codebook_use"] <= 1 and 1 <= codes["codebook_perplexity"] <= 6


def test_what_is_unlike_the_data_has_a_high_score(ae: Any, run: Path) -> None:
    digit = Path("digit.png")
    model = load(run)
    model.modality.write(model.sample(1), digit)
    noise = Path("noise.png")
    model.modality.write([model.modality.from_tensor(torch.rand(1, 28, 28))], noise)
    rows = json.loads(ae("score", run, digit, noise, "--json").stdout)
    assert [row["file"] for row in rows] == ["digit", "noise"]
    assert rows[1]["distortion"] > 3 * rows[0]["distortion"]
    assert rows[0]["distortion_plus_rate"] == pytest.approx(rows[0]["distortion"] + rows[0]["rate"])
    ae("score", run, digit, noise, "-o", "scores.csv")
    with open("scores.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert float(table[1]["mse"]) == rows[1]["mse"] and table[0]["file"] == "digit"
    assert "no NLL" in ae("score", run, digit, "--nll", 5, code=2).output
    assert "give FILES to score, or --against" in ae("score", run, code=2).output
    assert not Path("roc.png").exists()


def test_other_data_is_told_apart(ae: Any, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "noise"
    folder.mkdir()
    model = load(run)
    for i in range(40):
        picture = model.modality.from_tensor(torch.rand(1, 28, 28))
        model.modality.write([picture], folder / f"{i}.png")
    given = ("score", run, "--against", folder, "--figure", "roc.png", "--json")
    rows = {row["number"]: row for row in json.loads(ae(*given).stdout)}
    assert rows["distortion"]["auroc"] == 1
    assert rows["distortion"]["mean there"] > rows["distortion"]["mean here"]
    assert Path("roc.png").read_bytes().startswith(b"\x89PNG")


def test_wider_codes_cost_less_and_lose_more(ae: Any, run: Path) -> None:
    report = json.loads(ae("evaluate", run, "--curve", "curve.png", "--json").stdout)
    rates, distortions = ([p[name] for p in report["curve"]] for name in ("rate", "distortion"))
    assert rates[:5] == sorted(rates[:5], reverse=True)
    assert distortions == sorted(distortions)
    own = next(point for point in report["curve"] if point["spread"] == 1)
    assert own["rate"] == pytest.approx(report["rate"], rel=0.1)
    assert own["distortion"] == pytest.approx(report["distortion"], rel=0.1)
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_label_is_said_and_few_examples_are_not_compared(ae: Any, run: Path) -> None:
    untrained(small(condition=["digit"]), Path("conditional"))
    digit = Path("digit.png")
    load(run).modality.write(load(run).sample(1), digit)
    assert "conditioned on 'digit'" in ae("score", "conditional", digit, code=2).output
    report = json.loads(ae("evaluate", run, "--full", "--limit", 5, "--json").stdout)
    assert report["codes"] == {} and report["samples"] == {}
