"""Drawn pictures: each has its own causes, and its causes alone."""

from __future__ import annotations

import pytest
import torch
from ae_image.modality import Image
from ae_image.sprites import CAUSE_CLASSES, draw_sprites, sprites

from ae_toolkit import UsageError
from ae_toolkit.recipe import named
from ae_toolkit.testing.tiny import Tensors


def drawn(size: int = 32, **causes: list[int]) -> torch.Tensor:
    """Large squares in the middle, but for what is said."""
    num = max(map(len, causes.values()))
    usual = {"shape": 0, "scale": 5, "rotation": 0, "x": 15, "y": 15}
    labels = {k: torch.tensor(causes.get(k, [v] * num)) for k, v in usual.items()}
    return draw_sprites(labels, size, size).float() / 255


def test_no_two_pictures_are_the_same_and_both_splits_have_all_causes() -> None:
    image = Image(size=32, labels=dict(CAUSE_CLASSES))
    splits = [sprites(modality=image, split=split) for split in ("train", "test")]
    assert [len(examples) for examples in splits] == [50_000, 10_000]
    assert len({row.numpy().tobytes() for examples in splits for row in examples.y}) == 60_000
    for examples in splits:
        assert examples.y.shape[1:] == (1, 32, 32) and examples.y.dtype == torch.uint8
        for name, num in CAUSE_CLASSES.items():
            assert len(examples.labels[name].unique()) == num
    again = sprites(modality=image, split="test")
    assert torch.equal(again.y, splits[1].y)
    assert named("sprites-vae").modality.arguments["labels"] == CAUSE_CLASSES


def test_a_cause_moves_what_it_is_called_after() -> None:
    place = torch.arange(32) + 0.5
    for name, axis in (("x", 1), ("y", 0)):
        moved = drawn(**{name: [0, 31]}).sum(2 - axis)
        middles = (moved @ place) / moved.sum(1)
        assert middles.tolist() == pytest.approx([8, 24], abs=0.05), name
    # A square in a circle of a quarter of the side has an area of an eighth of the picture's.
    large, small = drawn(scale=[5, 0]).sum((1, 2)).tolist()
    assert large == pytest.approx(32 * 32 / 8, rel=0.01) and small == pytest.approx(large / 4, 0.02)
    assert drawn(shape=[1]).sum().item() == pytest.approx(torch.pi * 8 * 4, rel=0.02)  # an ellipse


def test_a_rotation_lies_within_the_period_of_its_shape() -> None:
    """The last step before a whole period looks like one step in the other direction."""
    middle = {"x": [0] * 3, "y": [0] * 3}  # both at pixel 8.0, so that turns keep the grid
    for shape in range(3):
        first, second, last = drawn(shape=[shape] * 3, rotation=[0, 1, 39], **middle)
        assert (first - second).abs().sum() > 1
        mirrored = last[:16, :16].flip(1)  # all three shapes are their own mirror images
        assert torch.allclose(mirrored, second[:16, :16], atol=0.01)


def test_edges_are_soft_and_shapes_differ_at_any_size() -> None:
    for size in (28, 64):
        some = drawn(size, shape=[0, 1, 2], rotation=[7] * 3)
        grey = ((some > 0.1) & (some < 0.9)).float().mean((1, 2))
        assert (grey > 0).all() and (some.amax((1, 2)) == 1).all()
        assert min((some[a] - some[b]).abs().sum() for a, b in ((0, 1), (0, 2), (1, 2))) > 20
    colour = sprites(modality=Image(size=(16, 24), channels=3), split="test")
    assert colour.shape == (3, 16, 24) and not colour.labels


def test_sprites_for_another_data_type_are_refused() -> None:
    with pytest.raises(UsageError, match="holds pictures"):
        sprites(modality=Tensors(), split="test")
