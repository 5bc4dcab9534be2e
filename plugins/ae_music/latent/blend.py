"""From melodies to melodies by way of codes: blends, neighbours, shifts and new ones.

Everything here takes a model and gives `Melody` objects, whole ones: cut into windows, sent through
the model window by window, and put together again.

Axes: W windows, D code dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ae_music.grid import COMMON_TIME, NO_EVENT, NOTE_OFF, Melody, Meter, meter_class, sounds_at_end
from ae_music.latent.attributes import combine, directions, measure
from ae_music.modality import has_pickup, modality_of
from ae_toolkit import Model
from ae_toolkit.inference import latent
from ae_toolkit.randomness import seed_of

if TYPE_CHECKING:
    from torch import Tensor

SPREAD_STEPS = 100  #: steps that a spread is rounded to


def load_melody_model(name: str, device: str) -> Model:
    """Loads a model and makes sure that it is one of melodies."""
    from ae_toolkit import load

    model = load(name, device=device)
    modality_of(model)
    return model


def blend(
    model: Model, a: Melody, b: Melody, *, steps: int = 9, path: str = "slerp"
) -> list[Melody]:
    """`steps` melodies from a to b: the two themselves at the ends, decoded blends between.

    On the way length and tempo go over from a's to b's; where one goes on, the other begins again;
    what else is not in the code is that of the nearer end. All `start` on the time line of a.

    Args:
        model: whose windows the melodies are cut into.
        a: the first.
        b: the last; its bars are drawn anew in a's meter if models know the two as different.
        steps: melodies in all.
        path: slerp, along the great arc between codes, or lerp.
    """
    first, last = modality_of(model).align(a, b)
    whole = looped(first, len(last)), looped(last, len(first))
    codes, condition = model.interpolate_codes(*whole, steps=steps, path=path)
    made = [a]
    for i, z in enumerate(codes[1:-1], start=1):
        share = i / (steps - 1)
        melody = decode(model, z, condition["meter"][:1], like=whole[share >= 0.5])
        length = round((1 - share) * len(first) + share * len(last))
        bar = melody.meter.steps
        melody = melody.padded(bar * math.ceil(length / bar))
        tempo = a.tempo ** (1 - share) * b.tempo**share
        made.append(replace(melody, tempo=tempo, name=f"{share:.0%}", start=first.start))
    early = b.meter.steps if has_pickup(b) and not has_pickup(last) else 0
    return [*made, replace(b, start=first.start - early)]


def looped(melody: Melody, num_steps: int) -> Melody:
    """A melody that begins again until it is so long, if it is shorter."""
    if len(melody) >= num_steps:
        return melody
    again = melody.steps.copy()
    if again[0] == NO_EVENT and sounds_at_end(again):
        again[0] = NOTE_OFF
    times = -(-num_steps // len(melody)) - 1
    steps = np.concatenate([melody.steps, np.tile(again, times)])[:num_steps]
    velocities = np.tile(melody.velocities, times + 1)[:num_steps]
    return replace(melody, steps=steps, velocities=velocities)


def sample(
    model: Model,
    num: int,
    *,
    bars: int,
    meter: Meter = COMMON_TIME,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Melody]:
    """New melodies of so many bars; longer ones than the model knows are several in a row."""
    import torch

    windows = math.ceil(bars / modality_of(model).bars)
    wanted = torch.tensor([meter_class(meter)])
    z = model.sample_codes(
        num * windows, {"meter": wanted}, seed=seed, temperature=temperature
    ).unflatten(0, (num, windows))
    made = [decode(model, mine, wanted) for mine in z]
    return [replace(m.bars(1, bars), name=f"new {i}") for i, m in enumerate(made, start=1)]


def vary(
    model: Model, melody: Melody, num: int, *, spread: float = 0.3, seed: int = 0
) -> list[Melody]:
    """Neighbours of a melody: its codes, moved along great arcs to ones that the prior draws.

    Args:
        model: whose windows the melody is cut into.
        melody: the original.
        num: how many.
        spread: how far on the way, 0 to 1.
        seed: of the draws.
    """
    import torch

    model.need_real_codes()
    examples = model.examples([melody])
    z, meter = model.encode_examples(examples).cpu(), examples.labels["meter"]
    made = []
    for i in range(num):
        other = model.sample_codes(len(z), {"meter": meter}, seed=seed_of(seed, "vary", i)).cpu()
        arcs = [latent.slerp(*ends, SPREAD_STEPS + 1) for ends in zip(z, other, strict=True)]
        near = torch.stack([arc[round(SPREAD_STEPS * spread)] for arc in arcs])
        variation = decode(model, near, meter[:1], like=melody)
        made.append(replace(variation, name=f"variation {i + 1}"))
    return made


def shift(model: Model, melody: Melody, amounts: Mapping[str, float]) -> Melody:
    """A melody with its codes moved along the directions of attributes, so many times each."""
    model.need_real_codes()
    examples = model.examples([melody])
    z, meter = model.encode_examples(examples).cpu(), examples.labels["meter"]
    way = combine(directions(model), amounts, meter=int(meter[0]))
    return replace(decode(model, z + way, meter[:1], like=melody), name=melody.name)


def decode(model: Model, z: Tensor, meter: Tensor, *, like: Melody | None = None) -> Melody:
    """The codes `(W, D)` of one melody to that melody; `meter` is `(1,)`, its class."""
    parts = model.decode_tensor(z, {"meter": meter.expand(len(z))})
    return modality_of(model).melody(list(parts), like=like, labels={"meter": float(meter[0])})


def attributes_of(model: Model, melody: Melody) -> dict[str, float]:
    """The mean of every attribute over a melody's windows."""
    examples = model.examples([melody])
    values = measure(
        examples.y.numpy(),
        examples.labels["meter"].numpy(),
        bars=modality_of(model).bars,
        most=len(melody),
    )
    return {name: float(column.mean()) for name, column in values.items()}


def hamming(a: Melody, b: Melody) -> float:
    """The share of steps in which two melodies differ; the shorter one is followed by silence."""
    length = max(len(a), len(b))
    return float((a.padded(length).steps != b.padded(length).steps).mean())
