"""What a model says of items: what each costs it, and how unlike its data it is."""

from __future__ import annotations

import pytest
import torch
from conftest import SAMPLES

from ae_toolkit import UsageError, load
from ae_toolkit.data.examples import load_data
from ae_toolkit.inference.evaluate import evaluate
from ae_toolkit.inference.model import Model
from ae_toolkit.modality import read_items


def digits(model: Model) -> list[object]:
    return [
        item
        for path in sorted(SAMPLES.glob("digit-*.png"))
        for item in read_items(path, model.modality)
    ]


def test_terms_and_scores_are_those_of_an_evaluation() -> None:
    model = load("mnist-vae")
    report = evaluate(model, data="mnist-sample", limit=60, num_samples=0)
    data = load_data(model.recipe.with_({"data": "mnist-sample"}), model.modality, "test")
    prepared = model.modality.prepare(data.at(range(60)).y)
    items = [model.modality.from_tensor(y) for y in prepared]
    terms, score = model.terms(items), model.score(items)
    assert terms.distortion.shape == (1, 60) and terms.penalty.shape == (60,)
    assert torch.allclose(score, terms.distortion[0] + terms.rate.sum(-1)[0])
    scores = torch.stack([model.score(items, seed=seed) for seed in range(9)])
    assert float(scores.mean()) == pytest.approx(report["negative_elbo"], rel=0.03)
    assert torch.equal(model.score(items), score)
    assert not torch.equal(model.score(items, seed=1), score)


def test_what_is_unlike_the_data_has_a_high_score() -> None:
    model = load("mnist-2d")
    items = digits(model)
    noise = model.modality.from_tensor(torch.rand(model.modality.shape))
    scores = model.score([*items, noise])
    assert scores[-1] > 2 * scores[:-1].max()
    with pytest.raises(UsageError, match="there are no items to judge"):
        model.score([])


def test_items_of_several_segments_have_one_score_each() -> None:
    model = load("melody-2bar")
    tunes = [
        next(iter(read_items(path, model.modality)))
        for path in sorted((SAMPLES.parents[1] / "ae_music" / "samples").glob("*.mid"))[:2]
    ]
    scores, terms = model.score(tunes), model.terms(tunes)
    assert scores.shape == (2,) and terms.distortion.shape[1] > 2
    whole = terms.distortion.sum() + terms.rate.sum()
    assert float(scores.sum()) == pytest.approx(float(whole), rel=1e-5)
