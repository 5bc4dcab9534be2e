"""Checks of a data type on some of its items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ae_toolkit.files import outputs
from ae_toolkit.modality import Modality, examples_of
from ae_toolkit.randomness import Source


def check_modality(modality: Modality, items: Sequence[Any], folder: Path) -> None:
    """Checks a data type on some of its items.

    Checked: shapes and labels, `prepare` and `augment`, a finite metric per example, and that what
    is written can be read again.

    Args:
        modality: constructed.
        items: two or more.
        folder: an empty one, to write into.
    """
    label = type(modality).__name__
    for suffix in modality.suffixes:
        assert suffix.startswith("."), f"{label}: {suffix!r} is no file ending such as '.csv'"
    parts = [examples_of(item, modality) for item in items]
    examples = [modality.to_tensor(item) for item in items]
    y = torch.stack([e.y for e in examples if e.y.shape == examples[0].y.shape])
    prints = modality.fingerprints(y)
    assert len(prints) == len(y), f"{label}: fingerprints must give one for each example"
    shape, y = y.shape, modality.prepare(y)
    same_shape(label, "prepare(y)", y.shape, shape)
    assert bool(y.float().isfinite().all()), f"{label}: prepare(y) holds a NaN"
    most = modality.num_classes - 1
    assert most < 0 or bool(((y >= 0) & (y <= most)).all()), (
        f"{label}: prepare(y) holds other classes than 0 to {most}"
    )
    augmented = modality.augment(y, Source(0, "check").step(0))
    same_shape(label, "augment(y)", augmented.shape, y.shape)
    for name, value in modality.metrics(y, y, None).items():
        same_shape(label, f"metric {name!r}", value.shape, y.shape[:1])
        assert bool(value.isfinite().all()), f"{label}: metric {name!r} is not finite"
    labels = {name: torch.tensor([e.labels[name] for e in examples]) for name in examples[0].labels}
    mask = modality.mask(labels, len(examples))
    if mask is not None:
        same_shape(label, "mask(labels)", mask.shape, (len(examples), modality.shape[0]))
        lengths = mask.sum(1).tolist()
        same_shape(label, "the lengths by mask(labels)", lengths, [len(e.y) for e in examples])
    for item, mine in zip(items, parts, strict=True):
        prepared = [modality.prepare(part.y[None])[0] for part in mine]
        joined = modality.join(prepared, like=item, labels=mine[0].labels)
        num = len(modality.segments(joined))
        assert num == len(mine), f"{label}: join of {len(mine)} parts gives an item of {num}"
    back = [modality.from_tensor(row, like=item) for row, item in zip(y, items, strict=False)]
    path = folder / f"written{modality.suffixes[0]}"
    with outputs():  # at once, even where a command would keep what it writes until its end
        modality.write(back[:1], path)
    assert path.is_file(), f"{label}: write wrote nothing at {path.name}"
    read = list(modality.read(path))
    assert read, f"{label}: what write wrote holds no item"
    again = modality.to_tensor(read[0]).y
    same_shape(label, "an item written and read", again.shape[1:], modality.shape[1:])
    with outputs():
        modality.figure({"written": back, "read": read[:1]}, folder / "figure.png")
    assert (folder / "figure.png").is_file(), f"{label}: figure drew nothing"


def same_shape(label: str, what: str, found: Sequence[int], expected: Sequence[int]) -> None:
    assert tuple(found) == tuple(expected), (
        f"{label}: {what} has shape {tuple(found)}, not {tuple(expected)}"
    )
