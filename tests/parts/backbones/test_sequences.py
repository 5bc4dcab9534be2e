"""Sequences in the core: masks, teacher forcing, drawing step by step, items of several parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from ae_toolkit import Modality, Model, UsageError, registry
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import Batch, Example
from ae_toolkit.parts.autoregressive import AutoregressivePrior
from ae_toolkit.parts.backbones.recurrent import (
    HierarchicalDecoder,
    RecurrentDecoder,
    RecurrentEncoder,
    Start,
)
from ae_toolkit.parts.backbones.transformer import (
    AutoregressiveDecoder,
    TransformerDecoder,
    TransformerEncoder,
)
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import Recipe
from ae_toolkit.runs.checkpoint import Config
from ae_toolkit.testing.contracts import Tensors, check_part, tiny_batch, tiny_recipe

LENGTH, CLASSES = 6, 5
DECODERS = {
    "autoregressive": (AutoregressiveDecoder, {"width": 16}),
    "recurrent": (RecurrentDecoder, {"width": 16, "layers": 2}),
    "hierarchical": (HierarchicalDecoder, {"width": 16, "conductor": 16, "segment": 3}),
}


def decoder(name: str, *, num_classes: int = CLASSES, **changes: Any) -> Any:
    make, arguments = DECODERS[name]
    torch.manual_seed(0)
    return make(
        z_shapes=((4,),), out_shape=(num_classes or 1, LENGTH), num_classes=num_classes,
        cond_dim=2, **{**arguments, **changes},
    )  # fmt: skip


def inputs(num: int = 3) -> tuple[tuple[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(num, 4, generator=generator)
    c = torch.randn(num, 2, generator=generator)
    return (z,), c, torch.randint(CLASSES, (num, LENGTH), generator=generator)


@pytest.mark.parametrize("name", DECODERS)
def test_a_position_knows_only_those_before_it(name: str) -> None:
    part, (z, c, target) = decoder(name), inputs()
    step = Source(0, "test").step(0)
    whole = part(z, c, None, target=target, step=step)
    for at in reversed(range(LENGTH)):
        other = target.clone()
        other[:, at:] = (other[:, at:] + 1) % CLASSES
        changed = part(z, c, None, target=other, step=step)
        assert torch.allclose(changed[..., : at + 1], whole[..., : at + 1], atol=1e-5)
    assert not torch.allclose(changed, whole, atol=1e-3)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("num_classes", [CLASSES, 0], ids=["classes", "reals"])
def test_generating_agrees_with_teaching(name: str, num_classes: int) -> None:
    """What is generated greedily is, taught, its own most likely continuation."""
    part, (z, c, _) = decoder(name, num_classes=num_classes), inputs()

    def draw(params: Tensor) -> Tensor:
        return params.argmax(1) if num_classes else params[:, 0]

    part.eval()
    made = part.generate(z, c, None, draw=draw)
    taught = part(z, c, None, target=made, step=Source(0, "test").step(0))
    assert torch.allclose(draw(taught).float(), made.float(), atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_scheduled_sampling_mixes_in_own_draws_late_and_in_training_only(name: str) -> None:
    part, (z, c, target) = decoder(name, scheduled_sampling=1.0), inputs(16)
    source = Source(0, "test")
    plain = decoder(name)(z, c, None, target=target, step=source.step(0))
    early = part(z, c, None, target=target, step=source.step(0, progress=0.0))
    late = part(z, c, None, target=target, step=source.step(0, progress=1.0))
    assert torch.allclose(early, plain, atol=1e-6)
    assert not torch.allclose(late, plain, atol=1e-3)
    part.eval()
    assert torch.allclose(part(z, c, None, target=target, step=source.step(0)), plain, atol=1e-6)


@pytest.mark.parametrize("make", [RecurrentEncoder, TransformerEncoder])
def test_encoders_do_not_see_what_is_masked(make: Any) -> None:
    torch.manual_seed(0)
    part = make(in_shape=(LENGTH,), num_classes=CLASSES, cond_dim=2, width=16)
    _, c, x = inputs()
    mask = torch.arange(LENGTH) < torch.tensor([6, 4, 1])[:, None]
    other = torch.where(mask, x, (x + 1) % CLASSES)
    (mine,), (its,) = part(x, c, mask), part(other, c, mask)
    assert torch.allclose(mine, its, atol=1e-6)
    assert not torch.allclose(part(x, c, None)[0], mine)


def test_the_first_state_is_told_the_code_and_the_condition() -> None:
    first, (z, c, _) = Start(((4,),), cond_dim=2, layers=2, width=8), inputs()
    for other in (first(z, c + 1), first((z[0] + 1,), c)):
        assert not torch.allclose(first(z, c), other)


def test_a_recurrent_encoder_reads_both_ways() -> None:
    part = RecurrentEncoder(in_shape=(LENGTH,), num_classes=CLASSES, cond_dim=2, width=8)
    part.back.load_state_dict(part.ahead.state_dict())
    _, c, x = inputs()
    (mine,), (turned,) = part(x, c, None), part(x.flip(1), c, None)
    assert torch.allclose(mine[:, 8:], turned[:, :8], atol=1e-6)
    assert not torch.allclose(mine[:, 8:], mine[:, :8], atol=1e-3)


def test_a_masked_decoder_gives_the_same_for_what_is_real() -> None:
    torch.manual_seed(0)
    part = TransformerDecoder(
        z_shapes=((3, 3),), out_shape=(CLASSES, LENGTH), num_classes=CLASSES, cond_dim=2,
        width=16, patch=2,
    )  # fmt: skip
    z, c = torch.randn(2, 3, 3), torch.randn(2, 2)
    mask = torch.arange(LENGTH) < torch.tensor([6, 4])[:, None]
    other = torch.where(mask[:, None, ::2], z, z + 1)
    mine, its = part.params((z,), c, mask), part.params((other,), c, mask)
    real = mask[:, None].expand_as(mine)
    assert torch.allclose(mine[real], its[real], atol=1e-5)


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("spatial", [False, True], ids=["flat", "spatial"])
def test_transformers_take_patches_and_both_kinds_of_code(patch: int, spatial: bool) -> None:
    small = {"name": "transformer", "width": 8, "heads": 2, "patch": patch}
    check_part(
        "encoder", "transformer", shape=(LENGTH,), num_classes=CLASSES, condition=True,
        arguments={"width": 8, "heads": 2, "patch": patch, "dropout": 0.1},
        changes={"decoder": small, "bottleneck.spatial": spatial},
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(LENGTH,), (LENGTH, 2)])
@pytest.mark.parametrize("name", ["recurrent", "transformer"])
def test_encoders_take_real_sequences(name: str, shape: tuple[int, ...]) -> None:
    check_part("encoder", name, shape=shape, changes={"decoder": {"name": "mlp"}})


@pytest.mark.parametrize(
    ("kind", "name", "arguments", "words"),
    [
        ("encoder", "transformer", {"patch": 4}, "patch 4 does not divide the 6"),
        ("encoder", "transformer", {"width": 10, "heads": 4}, "cannot be shared out among 4 heads"),
        ("decoder", "hierarchical", {"segment": 4}, "segment 4 does not divide the 6"),
        ("decoder", "autoregressive", {"scheduled_sampling": 2}, "not a share"),
    ],
)
def test_what_does_not_fit_is_said(
    kind: str, name: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        check_part(kind, name, shape=(LENGTH,), num_classes=CLASSES, arguments=arguments)


class Words(Modality):
    """Texts of the letters a to d, cut into lines of six; `kind` says how long a new one is."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt",)

    def __init__(self) -> None:
        self.shape, self.num_classes, self.labels = (LENGTH,), CLASSES, {"kind": 3}

    def read(self, path: Path) -> Iterator[str]:
        yield path.read_text()

    def to_tensor(self, item: str) -> Example:
        return self.segments(item)[0]

    def segments(self, item: str) -> list[Example]:
        lines = [item[at : at + LENGTH] for at in range(0, len(item), LENGTH)]
        return [
            Example(torch.tensor([ord(letter) - 96 for letter in line]), {"kind": 1}, "")
            for line in lines
        ]

    def join(self, segments: Sequence[Tensor], *, like: Any = None, labels: Any = None) -> str:
        letters = "".join(chr(int(value) + 96) for segment in segments for value in segment)
        return letters if like is None else letters[: max(len(like), LENGTH)]

    def from_tensor(
        self, y: Tensor, *, like: Any = None, labels: Mapping[str, float] | None = None
    ) -> str:
        return self.join([y], like=like)

    def write(self, items: Sequence[str], path: Path) -> None:
        path.write_text("\n".join(items))

    def mask(self, labels: Mapping[str, Tensor], num: int) -> Tensor:
        kind = labels.get("kind", torch.zeros(num))
        return torch.arange(LENGTH) < 2 + 2 * kind[:, None]


@pytest.fixture
def words(tmp_path: Path) -> Model:
    registry.modalities.register("words")(Words)
    registry.datasets.register("words")(lambda *, modality, split: None)
    recipe = Recipe.of(
        {
            "name": "words", "data": {"name": "words"}, "modality": {"name": "words"},
            "condition": ["kind"],
            "encoder": {"name": "transformer", "width": 8, "heads": 2},
            "bottleneck": {"name": "gaussian", "z_dim": 3},
            "decoder": {"name": "autoregressive", "width": 8, "heads": 2},
            "likelihood": {"name": "categorical"},
        }
    )  # fmt: skip
    torch.manual_seed(0)
    modality = Words()
    net = Autoencoder(recipe, modality=modality).eval().requires_grad_(False)
    return Model(net, modality=modality, config=Config(recipe, {}, {}), folder=tmp_path)


def test_long_items_go_through_part_by_part(words: Model) -> None:
    long = "abcd" * 5
    assert words.encode([long, "ab"]).shape == (5, 3)
    back = words.reconstruct([long, "abc"])
    assert [len(text) for text in back] == [20, LENGTH]


def test_what_is_masked_makes_no_difference(words: Model) -> None:
    net, source = words.autoencoder, Source(0, "test")
    y = torch.randint(CLASSES, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(LENGTH) < torch.tensor([6, 4, 1])[:, None]
    batch = Batch(y, mask, {"kind": torch.tensor([0, 1, 2])})
    other = batch._replace(y=torch.where(mask, y, (y + 1) % CLASSES))
    mine, its = (net(some, source.step(0)).terms.distortion for some in (batch, other))
    assert torch.allclose(mine, its, atol=1e-5)
    c = net.embed(batch.labels, like=y)
    mine, its = (net.encode(some.y, c, mask)[0] for some in (batch, other))
    assert torch.allclose(mine, its, atol=1e-5)


def test_a_masked_decoder_is_masked_in_training() -> None:
    small = {"name": "transformer", "width": 16, "patch": 2}
    parts = {"encoder": small, "decoder": small, "bottleneck": {"name": "deterministic"}}
    changes = {**parts, "bottleneck.spatial": True, "bottleneck.z_dim": 3}
    with (
        registry.modalities.temporarily(tensors=Tensors),
        registry.datasets.temporarily(tensors=lambda *, modality, split: None),
    ):
        recipe = tiny_recipe(shape=(LENGTH,), num_classes=CLASSES, changes=changes)
        modality = recipe.make("modality")
        net = Autoencoder(recipe, modality=modality)
    mask = torch.arange(LENGTH) < torch.tensor([6, 4, 3, 1])[:, None]
    batch, c = tiny_batch(modality)._replace(mask=mask), torch.empty(4, 0)
    params = net.decoder.params(net.encode(batch.y, c, mask), c, mask)
    found = net(batch, Source(0, "test").step(0)).terms.distortion[0]
    assert torch.allclose(found, net.likelihood.nll(params, batch.y, mask), atol=1e-5)


def test_labels_are_given_for_all_or_for_each_item(words: Model) -> None:
    items = ["abcdabcd", "ab"]
    plain = words.encode(items, {"kind": 2})
    each = words.encode(items, {"kind": [2, 0]})
    assert torch.equal(plain[:2], each[:2]) and not torch.equal(plain[2], each[2])
    assert len(words.reconstruct(items, {"kind": [2, 2]})) == 2
    assert words.encode([]).shape == (0, 3) and words.reconstruct([]) == []


def test_bytes_are_classes_too() -> None:
    """256 classes, stored and prepared in uint8, where the start's class does not fit."""
    part = AutoregressiveDecoder(
        z_shapes=((4,),), out_shape=(256, 300), num_classes=256, cond_dim=0, width=8, heads=2
    )
    encoder = RecurrentEncoder(in_shape=(300,), num_classes=256, cond_dim=0, width=8)
    x = torch.randint(256, (2, 300), dtype=torch.uint8)
    step = Source(0, "test").step(0)
    out = part((torch.zeros(2, 4),), torch.zeros(2, 0), None, target=x, step=step)
    assert out.shape == (2, 256, 300) and encoder(x, torch.zeros(2, 0), None)[0].shape == (2, 16)


def test_walks_between_items_of_different_lengths(words: Model) -> None:
    walk = words.interpolate("abcdabcdabcdabcdab", "aaaaaa", steps=5)
    assert [len(text) for text in walk] == [18, 18, 6, 6, 6]
    codes, labels = words.interpolate_codes("abcdabcdabcdabcdab", "aaaaaa", steps=3)
    ends = words.encode(["abcdabcdabcdabcdab", "aaaaaa"])
    assert [len(z) for z in codes] == [3, 2, 1]
    assert torch.allclose(codes[0], ends[:3], atol=1e-5)
    assert torch.allclose(codes[2][0], ends[3], atol=1e-5)
    assert int(labels["kind"][0]) == 1


def test_what_is_made_anew_is_as_long_as_its_labels_say(words: Model) -> None:
    values = words.decode_tensor(torch.randn(3, 3), {"kind": torch.tensor([0, 0, 1])})
    assert (values[:, 4:] == 0).all()


@pytest.mark.parametrize("shape", [(2,), (2, 1), (1, 2)])
def test_autoregressive_prior_draws_from_its_own_density(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    prior = AutoregressivePrior(
        z_shapes=(shape,), cond_dim=1, width=8, heads=2, hidden=8, components=3
    )
    prior.head.weight.data.mul_(10)  # far from where it begins
    line = torch.linspace(-12, 12, 241)
    grid = torch.cartesian_prod(line, line)
    c = torch.ones(1, 1)
    with torch.no_grad():
        log_p = prior.log_prob((grid.reshape(-1, *shape),), c.expand(len(grid), 1))[:, 0]
        p = log_p.exp() * (line[1] - line[0]) ** 2
        assert float(p.sum()) == pytest.approx(1, abs=0.01)
        num = 20_000
        step = Source(0, "test").step(0)
        (drawn,) = prior.sample(num, c.expand(num, 1), temperature=1.0, step=step)
    drawn = drawn.reshape(num, 2)
    mean = (p[:, None] * grid).sum(0)
    spread = (p[:, None] * (grid - mean).square()).sum(0).sqrt()
    assert torch.allclose(drawn.mean(0), mean, atol=0.05)
    assert torch.allclose(drawn.std(0), spread, atol=0.05)
    both = (p * grid[:, 0] * grid[:, 1]).sum()
    assert float((drawn[:, 0] * drawn[:, 1]).mean()) == pytest.approx(float(both), abs=0.1)


class Doubled(Tensors):
    """As a package wrote it when segments were called parts."""

    def parts(self, item: Tensor) -> list[Example]:
        return 2 * super().parts(item)


def test_segments_by_their_former_name() -> None:
    doubled, item = Doubled(shape=(2,)), torch.zeros(2)
    assert len(doubled.segments(item)) == len(doubled.parts(item)) == 2
    assert len(Tensors(shape=(2,)).parts(item)) == 1
