"""Codes of integers: what they stand for, what takes them, and what does not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small

from ae_toolkit import Autoencoder, Recipe, RunError, UsageError, fit, load, named, registry
from ae_toolkit.parts.bottleneck import Gaussian
from ae_toolkit.parts.prior import Categorical
from ae_toolkit.parts.quantisation import FSQ
from ae_toolkit.randomness import Source
from ae_toolkit.testing.contracts import check_part

INTEGERS = {"prior": {"name": "categorical"}, "bottleneck": {"name": "fsq", "z_dim": 4}}


def fsq(num_levels: tuple[int, ...], **settings: object) -> FSQ:
    torch.manual_seed(0)
    return FSQ(
        in_shapes=[(5, 3, 3)], cond_dim=0, num_levels=num_levels,
        prior=lambda **given: Categorical(cond_dim=0, **given), **settings,
    )  # fmt: skip


@pytest.mark.parametrize("num_levels", [(2,), (3,), (8, 5), (4, 2, 3)])
def test_every_integer_stands_for_other_numbers_evenly_spaced(num_levels: tuple[int, ...]) -> None:
    part = fsq(num_levels, z_dim=1)
    every = torch.arange(part.num_classes)[:, None]
    (features,) = part.embed((every,), torch.empty(len(every), 0))
    assert len(torch.unique(features, dim=0)) == part.num_classes
    for num, column in zip(num_levels, features.T, strict=True):
        values = torch.unique(column)
        assert len(values) == num and values[0] == -1
        assert torch.allclose(values.diff(), torch.tensor(1 / (num // 2)))


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("num_levels", [(2, 2), (3, 4), (8, 5, 5, 5)])
def test_what_the_decoder_reads_is_what_the_integers_stand_for(
    num_levels: tuple[int, ...], spatial: bool
) -> None:
    part = fsq(num_levels, spatial=spatial, z_dim=6)
    h, c = (4 * torch.randn(50, 5, 3, 3),), torch.empty(50, 0)
    code = part(h, c, num_samples=1, step=None)
    assert code.z[0].shape == (50, *part.z_shapes[0]) and code.z[0].dtype == torch.int64
    assert code.features[0].shape == (50, *part.feature_shapes[0])
    assert torch.allclose(code.features[0], part.embed(code.z, c)[0], atol=1e-6)
    assert torch.equal(part.mean(h, c)[0], code.z[0])
    numbers = code.features[0].unflatten(1, (len(num_levels), -1)).transpose(0, 1).flatten(1)
    assert [len(torch.unique(each)) for each in numbers] == [*num_levels]  # all can be reached
    nats = code.rate.sum(-1)
    assert torch.allclose(nats, torch.tensor(math.log(part.num_classes) * code.z[0][0].numel()))


def test_what_is_squashed_flat_is_paid_for_and_pulled_back() -> None:
    part, c = fsq((8, 5)), torch.empty(2, 0)
    for size, is_paid in ((0.1, False), (100.0, True)):
        h = (size * torch.ones(2, 5, 3, 3),)
        code = part(h, c, num_samples=1, step=None)
        assert bool((code.penalty > 0).all()) == is_paid
    code.penalty.sum().backward()
    assert part.heads[0].linear.weight.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = small(train__epochs=2).with_(INTEGERS)
    run = tmp_path_factory.mktemp("discrete") / "run"
    fit(recipe, run, device="cpu", progress=False)
    return run


def test_codes_are_integers_from_end_to_end(run: Path, ae, tmp_path: Path, monkeypatch) -> None:
    model = load(run)
    items = model.sample(3, seed=1)
    z = model.encode(items)
    assert z.dtype == torch.int64 and z.shape == (3, 4)
    assert model.has_rate
    for mine, its in zip(model.decode(z), model.reconstruct(items), strict=True):
        assert np.array_equal(np.asarray(mine), np.asarray(its))
    assert not torch.equal(model.sample_codes(9, seed=1), model.sample_codes(9, seed=2))
    monkeypatch.chdir(tmp_path)
    model.modality.write(items[:1], Path("one.png"))
    ae("encode", str(run), "one.png", "-o", "z.npz")
    assert np.load("z.npz")["z"].dtype == np.int64
    ae("decode", str(run), "z.npz", "-o", "back")
    assert len([*Path("back").iterdir()]) == 1
    ae("evaluate", run, "--data", "mnist-sample", "--json")
    ae("image", "scatter", "--model", run, "--data", "mnist-sample", "-o", "scatter.png")
    ae("image", "grid", "--model", run, "-o", "grid.png", code=2)
    ae("image", "traverse", "one.png", "--model", run, "-o", "walk.png", "--axes", 0, code=2)
    through = [word for _ in range(3) for word in ("--through", "one.png")]
    ae("image", "grid", "--model", run, "-o", "grid.png", *through, code=2)
    assert model.encode([]).dtype == torch.int64


def test_what_needs_real_codes_says_so(run: Path) -> None:
    model = load(run)
    a, b = model.sample(2)
    with pytest.raises(UsageError, match="'fsq' are integers, between which nothing lies"):
        model.interpolate(a, b)
    with pytest.raises(UsageError, match="'fsq' are integers, between which nothing lies"):
        model.prior_transform(torch.zeros(1, 4))
    for wrong in (torch.full((1, 4), 1000), torch.full((1, 4), -1), torch.full((1, 4), 0.5)):
        with pytest.raises(UsageError, match="are whole numbers from 0 to 999"):
            model.decode(wrong)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"bottleneck": "fsq"},
            "prior 'standard-normal' is for codes that are real, and .* 'fsq' are int",
        ),
        (
            {"prior": "categorical"},
            "'categorical' is for codes that are integers, .* 'gaussian' are real",
        ),
        (
            {**INTEGERS, "bottleneck.num_levels": [5, 1]},
            r"num_levels is \[5, 1\], but each must be",
        ),
        ({**INTEGERS, "bottleneck.num_levels": [1001]}, "and at most 1,000, and their product"),
        ({**INTEGERS, "prior.num_classes": 5}, "num_classes"),
    ],
)
def test_a_prior_that_does_not_fit_its_codes(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        recipe: Recipe = named("mnist-2d").with_(changes).check()
        Autoencoder(recipe, modality=recipe.make("modality"))


class Former(Gaussian):
    """Written before codes could be integers, with names of its own that mean something now."""

    num_classes = 16

    def __init__(self, *, in_shapes, cond_dim, prior, z_dim: int = 4):
        super().__init__(in_shapes=in_shapes, cond_dim=cond_dim, prior=prior, z_dim=z_dim)
        self.embed = torch.nn.Embedding(2, 3)
        self.embed.weight.requires_grad_(False)

    def sample(self, mean: float) -> float:
        return mean


def test_a_bottleneck_of_contract_2_goes_on_whatever_its_names() -> None:
    recipe = small(bottleneck="former")
    with registry.bottlenecks.temporarily(former=Former):
        model = Autoencoder(recipe, modality=recipe.make("modality"))
    assert model.num_classes == 0
    z, c = (torch.zeros(2, 4),), torch.empty(2, 0)
    assert model.features(z, c) is z
    drawn = model.sample(2, c, temperature=1.0, step=Source(0, "former").step(0))
    assert drawn[0].shape == (2, 4)


class Bare(FSQ):
    """Gives its integers to the decoder."""

    embed = None

    def forward(self, *given, **settings):
        return super().forward(*given, **settings)._replace(features=None)


def test_integers_that_reach_the_decoder_are_refused() -> None:
    with (
        registry.bottlenecks.temporarily(bare=Bare),
        pytest.raises(RunError, match="bottleneck 'bare' of this process gives"),
    ):
        changes = {"prior": {"name": "categorical"}}
        check_part("bottleneck", "bare", arguments={"num_levels": [5]}, changes=changes)
