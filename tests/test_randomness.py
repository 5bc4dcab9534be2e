"""Noise of other kinds than normal and uniform, made of those."""

from __future__ import annotations

import pytest
import torch

from ae_toolkit.randomness import NoiseRecorder, Source, gamma, poisson, replay

NUM_DRAWS = 40_000


@pytest.mark.parametrize("concentration", [0.2, 1.0, 1.5, 30.0])
def test_gamma_noise_is_that_of_pytorch(concentration: float) -> None:
    drawn = gamma(torch.full((NUM_DRAWS,), concentration), Source(0, "test").step(0))
    share = torch.special.gammainc(torch.full_like(drawn, concentration), drawn).sort().values
    even = (torch.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS
    assert (share - even).abs().max() < 1.63 / NUM_DRAWS**0.5  # Kolmogorov and Smirnov, 1%


def test_gradients_flow_to_the_concentration_of_gamma_noise() -> None:
    for value in (0.5, 4.0):
        alpha = torch.full((NUM_DRAWS,), value, requires_grad=True)
        gamma(alpha, Source(0, "test").step(0)).mean().backward()
        assert alpha.grad is not None
        assert alpha.grad.sum().item() == pytest.approx(1.0, abs=0.05)  # d E[x] / d alpha = 1


@pytest.mark.parametrize("rate", [0.0, 0.3, 4.0, 2000.0])
def test_poisson_noise_has_its_mean_and_variance(rate: float) -> None:
    counts = poisson(torch.full((NUM_DRAWS,), rate), Source(0, "test").step(0))
    assert bool((counts == counts.round()).all()) and counts.min() >= 0
    assert counts.mean().item() == pytest.approx(rate, rel=0.03)
    assert counts.var().item() == pytest.approx(rate, rel=0.06)
    if rate == 0.3:
        assert (counts == 0).float().mean().item() == pytest.approx(0.7408, abs=0.01)


def test_such_noise_is_drawn_ahead_of_a_step() -> None:
    def ask(step: object) -> torch.Tensor:
        return gamma(torch.ones(6), step) + poisson(torch.ones(6), step)  # type: ignore[arg-type]

    source = Source(3, "test")
    recorder = NoiseRecorder(source, ask)
    replayed = ask(replay(torch.zeros(()), recorder.draw(5)))
    assert torch.equal(replayed, ask(source.step(5)))
