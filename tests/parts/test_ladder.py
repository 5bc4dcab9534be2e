"""A ladder: its rate is that of its path, and what is sampled is what its prior expects."""

from __future__ import annotations

import pytest
import torch

from ae_toolkit.parts.ladder import Ladder
from ae_toolkit.parts.prior import StandardNormal
from ae_toolkit.randomness import Source


@pytest.fixture
def ladder() -> Ladder:
    torch.manual_seed(0)
    part = Ladder(
        in_shapes=[(6,)], cond_dim=1, prior=lambda **given: StandardNormal(cond_dim=1, **given),
        z_dim=(2, 3, 4), width=16,
    )  # fmt: skip
    for net in part.prior.expect:  # what lies below depends on what lies above
        net[-1].weight.data.mul_(20)
    return part


@torch.no_grad()
def test_the_rate_is_the_mean_of_what_samples_cost(ladder: Ladder) -> None:
    h, c = (torch.randn(3, 6),), torch.rand(3, 1)
    costs = ladder(h, c, num_samples=4000, step=Source(0, "test").step(0)).rate
    assert costs.shape == (4000, 3, 9)
    many = [ladder(h, c, num_samples=1, step=Source(0, "test").step(i)).rate[0] for i in range(400)]
    mean, error = costs.mean(0), costs.std(0) / 4000**0.5 + torch.stack(many).std(0) / 20
    assert bool(((torch.stack(many).mean(0) - mean).abs() < 4 * error + 1e-3).all())


@torch.no_grad()
def test_the_decoder_reads_what_the_codes_say(ladder: Ladder) -> None:
    h, c, step = (torch.randn(5, 6),), torch.rand(5, 1), Source(0, "test").step(0)
    code = ladder(h, c, num_samples=1, step=step)
    assert code.features is not None
    assert torch.allclose(ladder.embed(code.z, c)[0], code.features[0], atol=1e-6)


@torch.no_grad()
def test_samples_have_the_density_that_the_prior_gives_them(ladder: Ladder) -> None:
    c = torch.rand(1, 1).expand(20_000, 1)
    z = ladder.prior.sample(20_000, c, temperature=1.0, step=Source(0, "test").step(0))
    state = ladder.prior.begin(z[0], c)
    expected = ladder.prior.below(0, state)
    white = (z[1] - expected.mean) * torch.exp(-0.5 * expected.logvar)
    assert white.mean(0).abs().max() < 0.03 and (white.std(0) - 1).abs().max() < 0.03
    assert float(z[1].mean(0).abs().max()) > 0.05  # and is not N(0, I)
    again = ladder.prior.sample(3, c[:3], temperature=0.0, step=Source(1, "test").step(0))
    assert torch.equal(again[2][0], again[2][1])
