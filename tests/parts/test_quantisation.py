"""Codebooks: what integers stand for, how vectors are learned, and that none stays unused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ae_toolkit.parts.prior import Categorical
from ae_toolkit.parts.quantisation import VQ, Codebook
from ae_toolkit.randomness import Source


def vq(shape: tuple[int, ...] = (6,), **settings: object) -> VQ:
    torch.manual_seed(0)
    return VQ(
        in_shapes=[shape], cond_dim=0, prior=lambda **given: Categorical(cond_dim=0, **given),
        **{"codebook_size": 16, "code_dim": 3, "z_dim": 4, **settings},
    )  # fmt: skip


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(6,), (5, 3, 2)])
def test_what_the_decoder_reads_is_what_the_integers_stand_for(
    residual: bool, shape: tuple[int, ...]
) -> None:
    part = vq(shape, residual=residual, spatial=len(shape) > 1)
    h, c, step = (torch.randn(32, *shape),), torch.empty(32, 0), Source(0, "test").step(0)
    for _ in range(3):
        part(h, c, num_samples=1, step=step)
    part.eval()
    code = part(h, c, num_samples=2, step=step)
    assert code.z[0].shape == (64, 4, *shape[1:]) and code.z[0].dtype == torch.int64
    assert code.features is not None
    assert torch.allclose(code.features[0], part.embed(code.z, torch.empty(64, 0))[0], atol=1e-5)
    assert torch.equal(part.mean(h, c)[0], code.z[0][:32])


def learned(codebook: Codebook, draw: Tensor, steps: int) -> Tensor:
    """Lets a codebook learn from batches of rows, and returns what it chooses for all."""
    for index in range(steps):
        step = Source(0, "test").step(index, progress=index / steps)
        batch = draw[torch.randperm(len(draw))[:256]].reshape(256, 1, 1, -1)
        codebook.learn(batch, codebook(batch), step)
    return codebook(draw.reshape(len(draw), 1, 1, -1))


def test_every_vector_finds_its_cluster() -> None:
    torch.manual_seed(0)
    centres = 10 * torch.randn(16, 3)
    rows = (centres.repeat(100, 1) + 0.1 * torch.randn(1600, 3))[torch.randperm(1600)]
    codebook = Codebook(1, 32, 3, residual=False, decay=0.9)
    chosen = learned(codebook, rows, 200)
    distance = torch.cdist(centres, codebook.vector[0]).min(1).values
    assert distance.max() < 0.2
    assert len(chosen.unique()) >= 29  # of 32: hardly one is unused


def test_a_vector_keeps_its_meaning_in_the_second_half_of_a_training() -> None:
    """One that nothing is near to begins anew before, and stays where it is later."""
    torch.manual_seed(0)
    rows = torch.randn(256, 1, 1, 3)
    for progress, moves in ((0.2, True), (0.8, False)):
        codebook = Codebook(1, 4, 3, residual=False, decay=0.0)
        codebook.count.fill_(1.0)
        codebook.vector[0, 0] = 1000.0
        before = codebook.vector[0, 0].clone()
        codebook.learn(rows, codebook(rows), Source(0, "test").step(0, progress=progress))
        assert bool((codebook.vector[0, 0].norm() < 100) == moves)
        assert moves or not torch.equal(codebook.vector[0, 1], before)


def test_what_is_left_is_refined() -> None:
    torch.manual_seed(0)
    rows = torch.randn(2000, 4)
    errors = []
    for num in (1, 2, 4):
        codebook = Codebook(num, 16, 4, residual=True, decay=0.9)
        chosen = learned(codebook, rows, 100)
        found = codebook.vectors(chosen)[:, 0, 0]
        errors.append(float((rows - found).square().mean()))
    assert errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]


def test_gradients_pass_the_choice_and_commitment_is_paid() -> None:
    part = vq()
    h, c, step = (torch.randn(8, 6),), torch.empty(8, 0), Source(0, "test").step(0)
    code = part(h, c, num_samples=1, step=step)
    assert code.features is not None
    code.features[0].sum().backward()
    weight = part.heads[0].linear.weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert bool((code.penalty > 0).all())
    with pytest.raises(ValueError, match="codebook_size is 1"):
        vq(codebook_size=1)


def test_the_choice_is_the_same_under_autocast() -> None:
    torch.manual_seed(0)
    codebook, x = Codebook(2, 512, 8, residual=False, decay=0.9), torch.randn(64, 2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        chosen = codebook(x)
    assert torch.equal(chosen, codebook(x))


STRANGERS_VQ = '''
import torch
from torch import nn

from ae_toolkit import registry
from ae_toolkit.contracts import Code, repeat


@registry.bottlenecks.register("their-vq")
class TheirVQ(nn.Module):
    """One integer, with a codebook that learns by gradients (van den Oord et al. 2017)."""

    def __init__(self, *, in_shapes, cond_dim, prior, codebook_size: int = 32, dim: int = 4):
        super().__init__()
        width = sum(torch.Size(shape).numel() for shape in in_shapes)
        self.entry = nn.Linear(width + cond_dim, dim)
        self.vectors = nn.Embedding(codebook_size, dim)
        self.num_classes, self.z_shapes, self.feature_shapes = codebook_size, ((1,),), ((dim,),)
        self.prior = prior(z_shapes=self.z_shapes, num_classes=codebook_size)

    def forward(self, h, c, *, num_samples, step):
        x = self._features(h, c)
        z = self._nearest(x)
        found = self.vectors(z[:, 0])
        penalty = (x.detach() - found).square().sum(1) + (x - found.detach()).square().sum(1)
        rate = -self.prior.log_prob((z,), c).expand(num_samples, -1, -1)
        seen = x + (found - x).detach()
        return Code((repeat(z, num_samples),), rate, penalty, (repeat(seen, num_samples),))

    def mean(self, h, c):
        return (self._nearest(self._features(h, c)),)

    def embed(self, z, c):
        return (self.vectors(z[0][:, 0].long()),)

    def _features(self, h, c):
        return self.entry(torch.cat([*(level.flatten(1) for level in h), c], 1)).float()

    def _nearest(self, x):
        return torch.cdist(x, self.vectors.weight).argmin(1, keepdim=True)
'''


def test_a_stranger_adds_a_vq_in_one_file(ae: Any, tmp_path: Path) -> None:
    """Trained, judged, encoded, decoded and sampled, with a transformer of ours as its prior."""
    (tmp_path / "theirs.py").write_text(STRANGERS_VQ)
    prior = 'prior={"name": "autoregressive-categorical", "width": 16}'
    settings = ["bottleneck.name=their-vq", prior, "objective.warmup=0", "train.epochs=2"]
    given = [word for setting in settings for word in ("--set", setting)]
    ae(
        "--import",
        "theirs.py",
        "train",
        "mnist-2d",
        "--data",
        "mnist-sample",
        "--out",
        "run",
        *given,
    )
    report = json.loads(ae("--import", "theirs.py", "evaluate", "run", "--full", "--json").stdout)
    assert 1 / 32 <= report["codes"]["codebook_use"] <= 1
    ae("--import", "theirs.py", "sample", "run", "-n", 2, "-o", "new")
    ae("--import", "theirs.py", "encode", "run", "new/0000.png", "-o", "z.npz")
    ae("--import", "theirs.py", "decode", "run", "z.npz", "-o", "back")
    assert Path("back").joinpath("0000.png").exists()
