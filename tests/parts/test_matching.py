"""Penalties on the distribution of codes: what they measure, and who learns from which part."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import small

from ae_toolkit import fit, load
from ae_toolkit.contracts import Posterior
from ae_toolkit.parts.matching import MMD, Adversarial, Factor, TotalCorrelation, critic_losses
from ae_toolkit.parts.prior import StandardNormal
from ae_toolkit.randomness import Source


def made(part: type, **settings: object):
    torch.manual_seed(0)
    return part(
        in_shapes=[(6,)], cond_dim=0, prior=lambda **given: StandardNormal(cond_dim=0, **given),
        **{"z_dim": 3, **settings},
    )  # fmt: skip


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_the_discrepancy_is_zero_for_what_is_alike_and_grows_with_distance(kernel: str) -> None:
    part = made(MMD, kernel=kernel)
    real = torch.randn(500, 3)
    far = [float(part.discrepancy(shift + torch.randn(500, 3), real).mean()) for shift in (0, 1, 3)]
    assert abs(far[0]) < 0.02 < far[1] < far[2]
    narrow = float(part.discrepancy(0.2 * torch.randn(500, 3), real).mean())
    assert narrow > 0.1


def test_codes_and_critic_learn_apart() -> None:
    torch.manual_seed(0)
    critic = torch.nn.Linear(3, 1)
    codes = torch.randn(8, 3, requires_grad=True)
    fooling, judging = critic_losses(critic, codes, torch.randn(8, 3))
    fooling.sum().backward(retain_graph=True)
    assert critic.weight.grad is None and codes.grad is not None
    codes.grad = None
    judging.sum().backward()
    assert critic.weight.grad is not None and codes.grad is None


@pytest.mark.slow
def test_an_adversarial_code_comes_to_lie_as_the_prior_does() -> None:
    """Features far from the origin, which only the critic can bring there."""
    part = made(Adversarial, hidden=(32,), weight=1.0, noise=0.3)
    optimizer = torch.optim.Adam(part.parameters(), lr=3e-3, betas=(0.5, 0.9))
    for index in range(600):
        h = (2 + 3 * torch.randn(128, 6),)
        code = part(h, torch.empty(128, 0), num_samples=1, step=Source(0, "test").step(index))
        optimizer.zero_grad()
        code.penalty.mean().backward()
        optimizer.step()
    z = part.mean((2 + 3 * torch.randn(2000, 6),), torch.empty(2000, 0))[0]
    assert z.mean(0).abs().max() < 0.6 and z.std(0).min() > 0.6 and z.std(0).max() < 1.5


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_the_total_correlation_is_that_of_a_gaussian(correlation: float) -> None:
    torch.manual_seed(0)
    num, width = 1000, 0.3
    mean = torch.randn(num, 2)
    mean[:, 1] = correlation * mean[:, 0] + math.sqrt(1 - correlation**2) * mean[:, 1]
    posterior = Posterior(mean, torch.full_like(mean, 2 * math.log(width)))
    z = mean + width * torch.randn(num, 2)
    part = made(TotalCorrelation, num_examples=num)
    found = float(part.total_correlation(z, posterior).mean())
    expected = -0.5 * math.log(1 - (correlation / (1 + width**2)) ** 2)
    assert found == pytest.approx(expected, abs=0.12)


def test_batches_of_all_kinds_have_the_density_of_all_codes_in_the_mean() -> None:
    """Minibatch-stratified sampling is without bias, and the paper's weights are these on average.

    Of 6 examples, each batch of one and 2 others is tried.
    """
    part, density = made(TotalCorrelation, num_examples=6), torch.rand(6, dtype=torch.float64)
    weights = part.log_weights(3).exp().double()
    batches = [(0, a, b) for a in range(1, 6) for b in range(1, 6) if a != b]
    found = torch.stack([weights[0] @ density[[*batch]] for batch in batches]).mean()
    assert float(found) == pytest.approx(float(density.mean()))
    # Appendix C.2 with N = 6 and M = 2: 1/N, then 1/M for all others but one, (N - M)/(N M) for it.
    assert weights[0].tolist() == pytest.approx([1 / 6, *2 * [(1 / 2 + 4 / 12) / 2]])


def test_a_critic_finds_the_total_correlation() -> None:
    torch.manual_seed(0)
    part = made(Factor, z_dim=2, hidden=(64,))
    optimizer = torch.optim.Adam(part.critic.parameters(), lr=1e-2)
    for _ in range(400):
        z = torch.randn(256, 2)
        z[:, 1] = 0.8 * z[:, 0] + 0.6 * z[:, 1]
        shuffled = torch.stack([z[:, 0], z[torch.randperm(256), 1]], 1)
        _, judging = critic_losses(part.critic, shuffled, z)
        optimizer.zero_grad()
        judging.mean().backward()
        optimizer.step()
    z = torch.randn(4000, 2)
    z[:, 1] = 0.8 * z[:, 0] + 0.6 * z[:, 1]
    assert float(part.critic(z).mean().detach()) == pytest.approx(0.51, abs=0.15)


def test_such_a_bottleneck_may_have_a_learned_prior(tmp_path: Path) -> None:
    recipe = small(bottleneck={"name": "mmd", "z_dim": 2}, prior="flow", train__epochs=1)
    assert len(load(fit(recipe, tmp_path / "run", progress=False)).sample(3)) == 3
