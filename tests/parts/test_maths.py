"""Formulas against independent ones: torch.distributions, Monte Carlo, and hand-worked cases."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributions as D

from ae_toolkit import Model, registry
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import Posterior, StepContext, Terms
from ae_toolkit.data.examples import Examples
from ae_toolkit.inference import latent
from ae_toolkit.inference.evaluate import active_units, evaluate, neighbour_accuracy, principal_axes
from ae_toolkit.parts.bottleneck import Deterministic, Gaussian
from ae_toolkit.parts.corruption import Binarise, Masking, Noise
from ae_toolkit.parts.flow import Flow, FlowPosterior
from ae_toolkit.parts.likelihood import Bernoulli, Categorical, CrossEntropy, SquaredError
from ae_toolkit.parts.likelihood import Gaussian as GaussianLikelihood
from ae_toolkit.parts.objective import ELBO, IWAE
from ae_toolkit.parts.prior import StandardNormal
from ae_toolkit.randomness import NoiseRecorder, Source, replay
from ae_toolkit.recipe import Train
from ae_toolkit.runs.checkpoint import Config
from ae_toolkit.testing.contracts import Tensors, tiny_batch, tiny_recipe
from ae_toolkit.training.schedule import Schedule, Watch


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


def test_densities_say_of_what() -> None:
    assert len([*GaussianLikelihood(num_classes=0, variance="learned").parameters()]) == 1
    assert not GaussianLikelihood(num_classes=0).supports(torch.tensor([0.0, math.nan]))
    for classes in ([0, 3], [-1, 0]):
        assert not Categorical(num_classes=3).supports(torch.tensor(classes))


@pytest.mark.parametrize(
    "likelihood",
    [
        Bernoulli(num_classes=0),
        CrossEntropy(num_classes=0),
        SquaredError(num_classes=0),
        SquaredError(num_classes=0, squash=True),
        GaussianLikelihood(num_classes=0, std=0.3),
    ],
)
def test_the_best_guess_is_the_target_that_its_parameters_are_best_for(likelihood, step) -> None:
    params = torch.randn(2, 1, 5, requires_grad=True)
    guess = likelihood.sample(params, temperature=0.0, step=step).detach()
    (slope,) = torch.autograd.grad(likelihood.nll(params, guess, None).sum(), params)
    assert slope.abs().max() < 1e-6


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


def test_a_bent_posterior_knows_its_own_density() -> None:
    """Its rate is log q - log p, the former by the change of variables with autograd's Jacobian."""
    torch.manual_seed(0)
    bottleneck = FlowPosterior(
        in_shapes=[(5,)], cond_dim=0, prior=partial(StandardNormal, cond_dim=0), z_dim=3, layers=3
    )
    for parameter in bottleneck.couplings.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    h, c = (torch.randn(1, 5),), torch.zeros(1, 0)
    code = bottleneck(h, c, num_samples=4, step=Source(0, "test").step(0))
    mean, logvar = bottleneck.base.posterior(h, c)
    noise = Source(0, "test").step(0).randn((1, 4, 3))[0]

    def bent(x: torch.Tensor) -> torch.Tensor:
        return bottleneck._bend(x[None], h, c)[0][0]

    for k in range(4):
        drawn = mean[0] + torch.exp(0.5 * logvar[0]) * noise[k]
        log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(bent, drawn))[1]
        q = torch.distributions.Normal(mean[0], torch.exp(0.5 * logvar[0]))
        log_p = torch.distributions.Normal(0.0, 1.0).log_prob(code.z[0][k]).sum()
        assert torch.allclose(code.z[0][k], bent(drawn), atol=1e-4)
        expected = q.log_prob(drawn).sum() - log_det - log_p
        assert torch.allclose(code.rate[k, 0, 0], expected, atol=1e-4)


def test_a_flow_starts_as_the_standard_normal_and_is_a_change_of_variables() -> None:
    flow, c, noise = Flow(z_shapes=[(3,)], cond_dim=2), torch.randn(2), torch.randn(3)
    plain = StandardNormal(z_shapes=[(3,)], cond_dim=2)
    given = (noise[None],), c[None]
    assert torch.allclose(flow.log_prob(*given), plain.log_prob(*given).sum(1), atol=1e-5)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)

    def draw(noise: torch.Tensor) -> torch.Tensor:
        step = StepContext(torch.tensor(1.0), lambda shape: noise[None], lambda shape: noise[None])
        return flow.sample(1, c[None], temperature=1.0, step=step)[0][0]

    jacobian = torch.autograd.functional.jacobian(draw, noise)
    expected = plain.log_prob(*given).sum() - torch.linalg.slogdet(jacobian).logabsdet
    drawn = (draw(noise)[None],)
    assert torch.allclose(flow.log_prob(drawn, c[None]), expected, atol=1e-4)
    assert not torch.allclose(flow.log_prob(drawn, c[None] + 1), expected, atol=1e-2)


def test_posterior_samples_have_the_posteriors_moments(step) -> None:
    prior = lambda z_shapes: StandardNormal(z_shapes=z_shapes, cond_dim=0)  # noqa: E731
    bottleneck = Gaussian(in_shapes=[(4,)], cond_dim=0, z_dim=2, prior=prior, logvar_bound=2.0)
    h, c = (3 * torch.randn(3, 4),), torch.empty(3, 0)
    posterior = bottleneck.posterior(h, c)
    z = bottleneck(h, c, num_samples=10_000, step=step).z[0].unflatten(0, (10_000, 3))
    assert torch.allclose(z.mean(0), posterior.mean, atol=0.15)
    assert torch.allclose(z.std(0), (posterior.logvar / 2).exp(), rtol=0.05)
    assert bottleneck.posterior((1e6 * h[0],), c).logvar.abs().max() <= 2


def test_a_sparse_code_pays_for_its_absolute_values(step) -> None:
    prior = lambda z_shapes: StandardNormal(z_shapes=z_shapes, cond_dim=0)  # noqa: E731
    bottleneck = Deterministic(in_shapes=[(4,)], cond_dim=0, z_dim=3, prior=prior, l1=0.5)
    h, c = (torch.randn(2, 4),), torch.empty(2, 0)
    code = bottleneck(h, c, num_samples=1, step=step)
    assert torch.allclose(code.penalty, 0.5 * code.z[0].abs().sum(1))


# A linear Gaussian autoencoder, of which everything is known.


WEIGHT, BIAS, STD = torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.0, 0.0]]), torch.ones(3), 0.5
NUM = 2000


@pytest.fixture
def linear() -> tuple[Model, torch.Tensor]:
    """A model of y = W z + b + 0.5 ε, and examples `(2000, 3)`.

    The columns of W are orthogonal, so that the true posterior is diagonal; the model's is shifted
    by 0.2 in every dimension and has twice the variance.
    """
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(NUM, 2, generator=generator) @ WEIGHT.T + BIAS
    y += STD * torch.randn(NUM, 3, generator=generator)
    labels = {"kind": torch.zeros(NUM, dtype=torch.long), "level": torch.zeros(NUM)}
    registry.modalities.register("tensors")(Tensors)
    registry.datasets.register("tensors")(
        lambda *, modality, split: Examples(y, None, labels, ["a"] * NUM)
    )
    recipe = tiny_recipe(shape=(3,), changes={
        "encoder.hidden": [], "bottleneck.z_dim": 2, "decoder.hidden": [],
        "likelihood": {"name": "gaussian", "std": STD},
    })  # fmt: skip
    modality = recipe.make("modality")
    net = Autoencoder(recipe, modality=modality).requires_grad_(False)
    to_mean, variance = true_posterior()
    logvar = 10 * torch.atanh((2 * variance).log() / 10)  # which the bottleneck squashes
    head = net.bottleneck.heads[0].linear
    head.weight.copy_(torch.cat([to_mean, torch.zeros(2, 3)]))
    head.bias.copy_(torch.cat([0.2 - to_mean @ BIAS, logvar]))
    net.decoder.head.weight.copy_(WEIGHT)
    net.decoder.head.bias.copy_(BIAS)
    return Model(net, modality=modality, config=Config(recipe, {}, {}), folder=Path()), y


def true_posterior() -> tuple[torch.Tensor, torch.Tensor]:
    """Of the linear model: what takes y - b to its mean, `(2, 3)`, and its variance, `(2,)`."""
    variance = 1 / (WEIGHT.square().sum(0) / STD**2 + 1)
    return variance[:, None] * WEIGHT.T / STD**2, variance


def exact_nll(y: torch.Tensor) -> torch.Tensor:
    covariance = WEIGHT @ WEIGHT.T + STD**2 * torch.eye(3)
    return -D.MultivariateNormal(BIAS, covariance).log_prob(y)


def test_evaluation_is_exact_where_everything_is_known(linear) -> None:
    model, y = linear
    to_mean, variance = true_posterior()
    report = evaluate(model, num_samples=200)
    truth = D.Normal((y - BIAS) @ to_mean.T, variance.sqrt())
    posterior = D.Normal(truth.mean + 0.2, (2 * variance).sqrt())
    rate = D.kl_divergence(posterior, D.Normal(0.0, 1.0)).sum(1).mean()
    gap = D.kl_divergence(posterior, truth).sum(1).mean()
    exact = exact_nll(y).mean()
    assert report["rate"] == pytest.approx(float(rate), abs=1e-4)
    assert report["negative_elbo"] == pytest.approx(float(exact + gap), abs=0.05)
    assert report["nll"] == pytest.approx(float(exact), abs=0.005)
    other = evaluate(model, num_samples=200, limit=100, seed=1)
    again = evaluate(model, num_samples=200, limit=100, seed=2)
    assert other["num_examples"] == 100
    assert other["negative_elbo"] != again["negative_elbo"] and other["nll"] != again["nll"]


class Swapped:
    """Shows zeros for targets that are ones, whatever they were."""

    def out_shape(self, shape):
        return shape

    def __call__(self, x, y, mask, step):
        return torch.zeros_like(x), torch.ones_like(y)


def test_a_corruption_says_what_is_seen_and_what_is_judged_by(linear, step) -> None:
    model, y = linear
    net, c = model.autoencoder, torch.empty(4, 0)
    net.bottleneck = Deterministic(
        in_shapes=[(3,)], cond_dim=0, z_dim=2, prior=lambda z_shapes: net.bottleneck.prior
    )
    net.corruption = Swapped()
    guess = net.decode(net.encode(torch.zeros(4, 3), c), c, step)
    expected = net.likelihood.nll(guess[:, None], torch.ones(4, 3), None).detach()
    found = net(tiny_batch(model.modality)._replace(y=y[:4]), step).terms.distortion[0]
    assert torch.allclose(found, expected, atol=1e-5)
    report = evaluate(model, limit=4)
    assert report["distortion"] == pytest.approx(float(expected[0]), rel=1e-5)


def test_more_samples_than_fit_at_once_are_all_counted(linear, monkeypatch) -> None:
    model, y = linear
    monkeypatch.setattr("ae_toolkit.inference.evaluate.CHUNK_SAMPLES", 64)
    report = evaluate(model, num_samples=1000, limit=20)
    assert report["nll"] == pytest.approx(float(exact_nll(y[:20]).mean()), abs=0.02)


def test_many_importance_weights_are_the_likelihood_of_each_example(linear, step) -> None:
    model, y = linear
    batch = tiny_batch(model.modality)._replace(y=y[:4])
    objective = IWAE(num_samples=5000)
    loss = objective(model.autoencoder(batch, step, num_samples=5000).terms, step)
    assert torch.allclose(loss, exact_nll(y[:4]), atol=0.1)


def test_temperatures_of_code_and_elements_spread_what_is_made(linear) -> None:
    model, _ = linear

    def spread(items: list[torch.Tensor]) -> float:
        return float(torch.stack(items).std(0).mean())

    sampled = [spread(model.sample(200, temperature=heat)) for heat in (0.0, 0.5, 1.0)]
    assert sampled[0] == 0 and sampled[2] == pytest.approx(2 * sampled[1], rel=1e-3)
    drawn = [spread(model.decode(torch.zeros(501, 2), temperature=heat)) for heat in (0, 1, 2)]
    assert drawn == pytest.approx([0, STD, 2 * STD], rel=0.1)
    values = model.decode_tensor(torch.zeros(1000, 2), temperature=1.0)
    assert not torch.equal(values[0], values[500]), "noise begins anew with every piece"


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
    dear = two._replace(penalty=torch.tensor([0.5]))
    assert IWAE(num_samples=2)(dear, at(1)).item() == pytest.approx(expected + 0.5, rel=1e-5)
    assert expected < ELBO()(two, at(1)).item() == pytest.approx(12)


def test_noise_depends_on_seed_stream_and_step_alone() -> None:
    def draw(kind: str, *key: object, step: int = 7) -> torch.Tensor:
        source = Source(*key)
        if kind == "permutation":
            return source.permutation(50, step)
        return getattr(source.step(step), kind)((50,))

    for kind in ("randn", "rand", "permutation"):
        assert torch.equal(draw(kind, 0, "a"), draw(kind, 0, "a"))
        for other in (draw(kind, 1, "a"), draw(kind, 0, "b"), draw(kind, 0, "a", step=8)):
            assert not torch.equal(draw(kind, 0, "a"), other)


@pytest.fixture
def grey() -> torch.Tensor:
    """The same four greys `(20000, 4)` again and again."""
    return torch.tensor([0.0, 0.2, 0.7, 1.0]).expand(20_000, 4)


def test_noise_has_the_moments_that_it_says(grey, step) -> None:
    x, target = Noise(mean=0.3, std=0.2, clip=None)(grey, grey, None, step)
    assert torch.allclose(x.mean(0), grey[0] + 0.3, atol=0.01) and target is grey
    assert torch.allclose(x.std(0), torch.full((4,), 0.2), atol=0.01)
    clipped, _ = Noise(mean=0.3, std=0.2, clip=(0.1, 0.9))(grey, grey, None, step)
    assert clipped.min() == pytest.approx(0.1) and clipped.max() == pytest.approx(0.9)


def test_masking_hides_its_share(grey, step) -> None:
    x, target = Masking(share=0.2, value=-1.0)(grey, grey, None, step)
    hidden = x == -1
    assert torch.allclose(hidden.float().mean(0), torch.full((4,), 0.2), atol=0.01)
    assert torch.equal(x[~hidden], grey[~hidden]) and target is grey
    assert torch.equal(Masking(share=0.0)(grey, grey, None, step)[0], grey)


def test_binarised_greys_are_as_often_1_as_they_are_light(grey, step) -> None:
    x, target = Binarise()(grey, grey, None, step)
    assert torch.equal(x, target) and set(target.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(target.mean(0), grey[0], atol=0.01)


def test_a_condition_is_one_hot_classes_and_plain_values() -> None:
    recipe = tiny_recipe(condition=True)
    modality = Tensors(labels={"kind": 3, "level": 0})
    batch = tiny_batch(modality)._replace(
        labels={"kind": torch.tensor([2, 0]), "level": torch.tensor([0.25, -1.0])}
    )
    net = Autoencoder(recipe, modality=modality)
    c = net.embed(batch.labels, like=batch.y[:2])
    assert c.tolist() == [[0, 0, 1, 0.25], [1, 0, 0, -1]]


def test_tape_plays_what_the_step_would_have_drawn() -> None:
    def part(step):
        return torch.cat([step.randn((2, 3)).flatten(), step.rand((4,))])

    source = Source(3, "train")
    tape = NoiseRecorder(source, part)
    assert torch.equal(part(replay(torch.tensor(0.0), tape.draw(5))), part(source.step(5)))


def test_tape_seeds_what_parts_draw_beside_it() -> None:
    tape, drawn = NoiseRecorder(Source(3, "train"), lambda step: torch.rand(3)), []
    for index in (5, 5, 6):
        tape.draw(index)
        drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


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
    pairs = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    assert neighbour_accuracy(pairs, torch.tensor([0, 1, 0, 1]), num=1) == 0, "none is its own"
