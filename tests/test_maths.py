"""Formulas against independent ones: torch.distributions, Monte Carlo, and hand-worked cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as D

from ae_toolkit import latent
from ae_toolkit.bottleneck import Gaussian
from ae_toolkit.contracts import Posterior, Terms
from ae_toolkit.evaluate import active_units, neighbour_accuracy, principal_axes
from ae_toolkit.likelihood import Bernoulli, Categorical, CrossEntropy, SquaredError
from ae_toolkit.likelihood import Gaussian as GaussianLikelihood
from ae_toolkit.noise import Source, Tape, replay
from ae_toolkit.objective import ELBO, IWAE
from ae_toolkit.prior import Flow, StandardNormal
from ae_toolkit.recipe import Train
from ae_toolkit.schedule import Schedule, Watch
from ae_toolkit.testing import Tensors


@pytest.fixture
def step():
    return Source(0, "test").step(0)


def test_bernoulli_is_a_bernoulli(step) -> None:
    params, y = torch.randn(5, 1, 3, 4), torch.randint(2, (5, 3, 4)).float()
    expected = -D.Bernoulli(logits=params[:, 0]).log_prob(y).sum((1, 2))
    assert torch.allclose(Bernoulli(num_classes=0).nll(params, y, None), expected, atol=1e-5)


def test_gaussian_is_a_gaussian(step) -> None:
    params, y = torch.randn(5, 1, 6), torch.randn(5, 6)
    expected = -D.Normal(params[:, 0], 0.3).log_prob(y).sum(1)
    assert torch.allclose(GaussianLikelihood(num_classes=0, std=0.3).nll(params, y, None), expected)
    params = torch.randn(5, 2, 6)
    logvar = 12 * torch.tanh(params[:, 1] / 12)
    expected = -D.Normal(params[:, 0], (logvar / 2).exp()).log_prob(y).sum(1)
    predicted = GaussianLikelihood(num_classes=0, variance="predicted")
    assert torch.allclose(predicted.nll(params, y, None), expected, atol=1e-5)


def test_categorical_is_a_categorical_and_samples_like_one(step) -> None:
    params, y = torch.randn(5, 7, 6), torch.randint(7, (5, 6))
    likelihood = Categorical(num_classes=7)
    expected = -D.Categorical(logits=params.movedim(1, -1)).log_prob(y).sum(1)
    assert torch.allclose(likelihood.nll(params, y, None), expected, atol=1e-5)
    many = torch.tensor([0.1, 0.2, 0.7]).log()[None, :, None].expand(20000, 3, 1)
    drawn = Categorical(num_classes=3).sample(many, temperature=1.0, step=step)
    shares = torch.bincount(drawn.flatten(), minlength=3) / 20000
    assert torch.allclose(shares, torch.tensor([0.1, 0.2, 0.7]), atol=0.015)
    assert (Categorical(num_classes=3).sample(many, temperature=0.0, step=step) == 2).all()


def test_distortions_say_that_they_are_none(step) -> None:
    for likelihood in (SquaredError(num_classes=0), CrossEntropy(num_classes=0)):
        assert not likelihood.is_density
        assert not likelihood.supports(torch.zeros(2, 3))
    assert not Bernoulli(num_classes=0).supports(torch.tensor([0.5]))
    assert SquaredError(num_classes=0).nll(torch.ones(1, 1, 4), torch.zeros(1, 4), None) == 4


def test_mask_leaves_out_what_is_padded() -> None:
    params, y = torch.ones(2, 1, 4, 3), torch.zeros(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert SquaredError(num_classes=0).nll(params, y, mask).tolist() == [6, 12]


def test_kl_agrees_with_torch_and_with_monte_carlo(step) -> None:
    mean, logvar = torch.randn(4, 3), torch.randn(4, 3)
    expected = D.kl_divergence(D.Normal(mean, (logvar / 2).exp()), D.Normal(0.0, 1.0))
    prior = StandardNormal(z_shapes=[(3,)], cond_dim=0)
    assert torch.allclose(prior.kl(Posterior(mean, logvar), torch.empty(4, 0)), expected, atol=1e-5)

    torch.manual_seed(0)
    bottleneck = Gaussian(
        in_shapes=[(6,)], cond_dim=0, z_dim=3, prior=lambda z_shapes: StandardNormal(
            z_shapes=z_shapes, cond_dim=0)
    )  # fmt: skip
    h, c = (torch.randn(4, 6),), torch.empty(4, 0)
    analytic = bottleneck(h, c, num_samples=1, step=step).rate[0]
    sampled = bottleneck(h, c, num_samples=20000, step=step).rate.mean(0)
    assert torch.allclose(analytic, sampled, atol=0.03)


def test_flow_is_invertible_and_starts_as_the_standard_normal(step) -> None:
    flow, c = Flow(z_shapes=[(5,)], cond_dim=2), torch.randn(8, 2)
    z = (torch.randn(8, 5),)
    plain = StandardNormal(z_shapes=[(5,)], cond_dim=2).log_prob(z, c).sum(1, keepdim=True)
    assert torch.allclose(flow.log_prob(z, c), plain, atol=1e-5)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, total = z[0], torch.zeros(8)
    for coupling in flow.couplings:
        x, log_det = coupling(x, c)
        total += log_det
    back = x
    for coupling in reversed(list(flow.couplings)):
        back = coupling.inverse(back, c)
    assert torch.allclose(back, z[0], atol=1e-4)

    def whole(row, condition):
        for coupling in flow.couplings:
            row, _ = coupling(row[None], condition[None])
            row = row[0]
        return row

    jacobian = torch.autograd.functional.jacobian(lambda row: whole(row, c[0]), z[0][0])
    assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, total[0], atol=1e-4)


def terms(distortion, rate, penalty=0.0) -> Terms:
    return Terms(torch.tensor(distortion), torch.tensor(rate), torch.tensor([penalty]))


def at(progress: float):
    return Source(0, "test").step(0, progress=progress)


def test_elbo_beta_free_bits_and_warm_up() -> None:
    one = terms([[10.0]], [[[1.0, 0.1]]], 0.5)
    assert ELBO()(one, at(1)).item() == pytest.approx(11.6)
    assert ELBO(beta=2)(one, at(1)).item() == pytest.approx(12.7)
    assert ELBO(free_bits=0.5)(one, at(1)).item() == pytest.approx(12.0)
    assert ELBO(free_bits=2, free_bits_per="total")(one, at(1)).item() == pytest.approx(12.5)
    warm = [ELBO(warmup=0.5)(one, at(p)).item() for p in (0, 0.25, 0.5, 1)]
    assert warm == pytest.approx([10.5, 11.05, 11.6, 11.6])
    cycles = [ELBO(warmup=1.0, cycles=2)(one, at(p)).item() for p in (0, 0.25, 0.5, 0.75, 1)]
    assert cycles == pytest.approx([10.5, 11.05, 10.5, 11.05, 11.6])


def test_iwae_is_tighter_than_elbo_and_equals_it_for_one_sample() -> None:
    two = terms([[10.0], [12.0]], [[[1.0]], [[1.0]]])
    expected = -math.log((math.exp(-11) + math.exp(-13)) / 2)
    assert IWAE(num_samples=2)(two, at(1)).item() == pytest.approx(expected, rel=1e-5)
    assert expected < ELBO()(two, at(1)).item() == pytest.approx(12)


def test_noise_depends_on_seed_stream_and_step_alone() -> None:
    draw = lambda *key: Source(*key).step(7).randn((3,))  # noqa: E731
    assert torch.equal(draw(0, "a"), draw(0, "a"))
    assert not torch.equal(draw(0, "a"), draw(1, "a"))
    assert not torch.equal(draw(0, "a"), draw(0, "b"))


def test_tape_plays_what_the_step_would_have_drawn() -> None:
    def part(step):
        return torch.cat([step.randn((2, 3)).flatten(), step.rand((4,))])

    source = Source(3, "train")
    tape = Tape(source, part)
    assert torch.equal(part(replay(torch.tensor(0.0), tape.draw(5))), part(source.step(5)))


def test_schedules_rise_and_fall() -> None:
    def shape(name: str, **more: object) -> list[float]:
        train = Train.model_validate({"epochs": 10, "batch_size": 10, "schedule": name, **more})
        schedule = Schedule.of(train, 1000)
        return [schedule.factor(step) for step in range(0, 1001, 100)]

    cosine = shape("cosine", warmup=0.1)
    assert cosine[1] == pytest.approx(1) and cosine[-1] == pytest.approx(0)
    assert cosine[1:] == sorted(cosine[1:], reverse=True)
    cycle = shape("one-cycle", warmup=0.3)
    assert max(cycle) == pytest.approx(cycle[3]) and cycle[:4] == sorted(cycle[:4])
    assert shape("constant", warmup=0.0) == [1.0] * 11


def test_batch_larger_than_the_data_becomes_the_data() -> None:
    schedule = Schedule.of(Train(epochs=3, batch_size=512), 100)
    assert (schedule.batch_size, schedule.steps) == (100, 3)


def test_watch_counts_validations_without_gain() -> None:
    watch = Watch()
    for loss in (3.0, 2.0, 2.5, 2.1):
        watch = watch.after(loss)
    assert watch == (2.0, 2)
    assert watch.over(2) and not watch.over(3) and not watch.over(0)


def test_quantiles_and_lattice() -> None:
    q = latent.quantiles(4)
    assert torch.allclose(D.Normal(0.0, 1.0).cdf(q), torch.tensor([0.125, 0.375, 0.625, 0.875]))
    across, down = latent.axes(3, 2, 0)
    square = latent.lattice(4, across=across, down=down)
    assert torch.allclose(square[1, 2], q[1] * down + q[2] * across)


def test_paths_begin_and_end_where_they_should() -> None:
    a, b = torch.randn(5), 3 * torch.randn(5)
    for path in (latent.lerp, latent.slerp):
        walk = path(a, b, 7)
        assert torch.allclose(walk[0], a, atol=1e-5) and torch.allclose(walk[-1], b, atol=1e-5)
        for end in (a, -a, torch.zeros(5)):
            assert torch.isfinite(path(a, end, 5)).all()
    norms = latent.slerp(a, b, 7).norm(dim=1)
    assert torch.allclose(norms, torch.linspace(a.norm(), b.norm(), 7), atol=1e-4)


def test_plane_passes_through_its_three_points() -> None:
    a, b, c = torch.randn(3, 4)
    square = latent.plane(a, b, c, 7, margin=2)
    assert square.shape == (7, 7, 4)
    for point, (row, column) in ((a, (2, 2)), (b, (2, 4)), (c, (4, 2))):
        assert torch.allclose(square[row, column], point, atol=1e-6)


def test_classes_are_judged_by_accuracy_and_numbers_by_squared_error() -> None:
    y, y_hat = (
        torch.tensor([[0, 4, 2, 0], [1, 1, 1, 1]]),
        torch.tensor([[0, 1, 2, 3], [1, 1, 1, 0]]),
    )
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    notes, heights = Tensors(shape=(4,), num_classes=5), Tensors(shape=(4,))
    assert notes.metrics(y, y_hat, None)["accuracy"].tolist() == [0.5, 0.75]
    assert notes.metrics(y, y_hat, mask)["accuracy"].tolist() == pytest.approx([2 / 3, 0.75])
    assert heights.metrics(y, y_hat, mask)["mse"].tolist() == [3.0, 0.25]
    assert {*notes.metrics(y, y_hat, None), *heights.metrics(y, y_hat, None)} == {"accuracy", "mse"}


def test_probes() -> None:
    codes = torch.cat([torch.randn(50, 2) + 10, torch.randn(50, 2) - 10])
    classes = torch.arange(2).repeat_interleave(50)
    assert neighbour_accuracy(codes, classes) == 1.0
    assert neighbour_accuracy(torch.randn(100, 2), classes) < 0.75
    assert active_units(torch.stack([torch.randn(100), torch.zeros(100)], 1)) == 1
    line = torch.randn(200, 1) @ torch.tensor([[3.0, 4.0, 0.0]])
    assert principal_axes(line, 2)[:, 1].abs().max() < 1e-3
