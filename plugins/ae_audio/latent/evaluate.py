"""What is reported of models of notes, on the test split: instruments that were held out.

Everything is measured on sound, after the levels that a model gives were made into samples and
analysed again. The floor is what analysis and synthesis lose without any model between them.

Axes: B notes, N samples, T frames, F bins, D code dimensions.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ae_audio.dsp import spectrum
from ae_audio.dsp.pitch import find_pitch
from ae_audio.dsp.sound import Sound
from ae_audio.latent.morph import evenly_bright
from ae_audio.modality import align_note
from ae_toolkit import Examples, Model
from ae_toolkit.console import track
from ae_toolkit.data.examples import from_option, load_data
from ae_toolkit.inference.latent import lerp

CHUNK_NOTES = 100  #: notes made into sound at once
MORPH_STEPS = 9  #: of an interpolation
NUM_PAIRS = 500
CENTROID_TOLERANCE = 0.01  #: share by which a step may turn back: a fifth of what is heard

#: What is reported, in words. Distances are in decibels.
MEASURE_WORDS = {
    "pitch_kept": "pitch within 50 cents of the original's, both as YIN hears them",
    "pitch_kept_floor": "– by analysis and synthesis alone",
    "lsd": "log-spectral distance, dB",
    "lsd_floor": "– of analysis and synthesis alone",
    "lsd_pca": "– of a PCA of the same code size",
    "lsd_pca_per_pitch": "– of such a PCA for every pitch",
    "lsd_below_pca": "share by which the model is below the PCA",
    "level_distance": "the same of levels, before they become sound, dB",
    "level_distance_pca": "– of the PCA",
    "level_distance_pca_per_pitch": "– of a PCA for every pitch",
    "centroid_monotone": "morphs (evenly bright by a tilt): centroid never turns back by 1%",
    "centroid_monotone_strict": "– never turns back at all",
    "centroid_monotone_plain": "– never by 1%, where steps are not tilted",
    "decoding": "seconds of sound decoded in a second",
}


class Heard(NamedTuple):
    """Of each note, `(B,)`: decibels from the original, the pitch, the spectral centroid."""

    distance: Tensor
    pitch: Tensor
    centroid: Tensor


def measure(
    model: Model,
    *,
    data: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures a model of notes on its test split.

    Args:
        model: conditioned on the pitch.
        data: a data set or path instead of the one that it was trained on.
        limit: notes, and pairs of them, chosen evenly.
        seed: of the pairs.
        progress: show bars.

    Returns:
        The keys of `MEASURE_WORDS`, and what was measured on.
    """
    recipe = model.recipe
    if data is not None:
        recipe = recipe.with_({"data": from_option(data).model_dump()})
    train, test = (load_data(recipe, model.modality, split) for split in ("train", "test"))
    notes = evenly(test, limit)
    originals, pitch = prepared(notes), notes.labels["pitch"].float()
    made = model.decode_tensor(model.encode_examples(notes), notes.labels)[:, 0]
    same, own = through_components(originals, pitch, train, model.z_dim)
    levels = {"": made, "_floor": originals, "_pca": same, "_pca_per_pitch": own}
    titles = ("model", "floor", "PCA", "PCA per pitch")
    found = {
        name: hear(rows, originals, title, progress)
        for (name, rows), title in zip(levels.items(), titles, strict=True)
    }
    report: dict[str, Any] = {
        "data": recipe.data.name,
        "split": "test",
        "num_examples": len(notes),
        "seed": seed,
        "instruments": sorted({instrument(group) for group in notes.groups}),
        "z_dim": model.z_dim,
        **{f"pitch_kept{name}": kept(found[name].pitch, pitch) for name in ("", "_floor")},
        **{f"lsd{name}": float(each.distance.mean()) for name, each in found.items()},
    }
    report["lsd_below_pca"] = 1 - report["lsd"] / report["lsd_pca"]
    for name in ("", "_pca", "_pca_per_pitch"):
        distance = spectrum.log_spectral_distance(levels[name].clamp(0, 1), originals)
        report[f"level_distance{name}"] = float(distance.mean())
    report |= interpolations(
        model, test, num=min(limit or NUM_PAIRS, NUM_PAIRS), seed=seed, progress=progress
    )
    report["decoding"] = speed(model)
    return report


def interpolations(
    model: Model, notes: Examples, *, num: int, seed: int, progress: bool
) -> dict[str, Any]:
    """Whether the centroid moves one way between notes of one pitch and two instruments.

    The morphs are those of `ae audio interpolate`.
    """
    pairs = list(choose_pairs(notes, num, seed=seed))
    if not pairs:
        return {"num_pairs": 0}
    first, last = ([pair[i] for pair in pairs] for i in (0, 1))
    model.need_real_codes()
    ends = [model.encode_examples(notes.select(side)) for side in (first, last)]
    walks = torch.stack([lerp(a, b, MORPH_STEPS) for a, b in zip(*ends, strict=True)])
    pitch = notes.labels["pitch"][torch.tensor(first)].repeat_interleave(MORPH_STEPS)
    plain = model.decode_tensor(walks.flatten(0, 1), {"pitch": pitch})[:, 0].clamp(0, 1)
    even = torch.cat([evenly_bright(steps) for steps in plain.unflatten(0, (-1, MORPH_STEPS))])
    rows = {}
    for name, made in (("morphs", even), ("plain", plain)):
        centroid = hear(made, made, name, progress).centroid.reshape(-1, MORPH_STEPS)
        onwards = centroid.diff() * (centroid[:, -1:] - centroid[:, :1]).sign()
        rows[name] = [share(onwards >= -tol * centroid[:, :-1]) for tol in (CENTROID_TOLERANCE, 0)]
    return {
        "num_pairs": len(pairs),
        "centroid_monotone": rows["morphs"][0],
        "centroid_monotone_strict": rows["morphs"][1],
        "centroid_monotone_plain": rows["plain"][0],
    }


def choose_pairs(notes: Examples, num: int, *, seed: int) -> Iterator[tuple[int, int]]:
    """Pairs of notes that have one pitch and not one instrument, drawn anew each."""
    owners = [instrument(group) for group in notes.groups]
    at: dict[int, list[int]] = defaultdict(list)
    for i, number in enumerate(notes.labels["pitch"].tolist()):
        at[int(number)].append(i)
    rows = [row for row in at.values() if len({owners[i] for i in row}) > 1]
    draw = random.Random(seed)
    for _ in range(num if rows else 0):
        row = draw.choice(rows)
        a = draw.choice(row)
        yield a, draw.choice([i for i in row if owners[i] != owners[a]])


def instrument(group: str) -> str:
    """Of a group, which is an instrument or, in a folder of one's own, a file."""
    return Path(group).name.partition("-")[0]


class Components(NamedTuple):
    """A PCA of levels: their mean `(T·F,)` and the principal axes `(T·F, D)`."""

    mean: Tensor
    axes: Tensor

    @classmethod
    def of(cls, notes: Examples, dim: int) -> Components:
        rows = prepared(notes).flatten(1)
        mean = rows.mean(0)
        rows -= mean
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            num = min(dim + 10, *rows.shape)
            axes = torch.svd_lowrank(rows, q=num, niter=3)[2]
        return cls(mean, axes[:, :dim])

    def __call__(self, levels: Tensor) -> Tensor:
        """Levels `(B, T, F)` through the components and back."""
        rows = levels.flatten(1) - self.mean
        return (rows @ self.axes @ self.axes.T + self.mean).reshape(levels.shape)


def through_components(
    levels: Tensor, pitch: Tensor, train: Examples, dim: int
) -> tuple[Tensor, Tensor]:
    """Levels `(B, T, F)` through the components of all training notes, and of those of their pitch.

    Of pitches `(B,)` that hardly any training note has, the components are those of all.
    """
    everywhere, by_pitch = Components.of(train, dim), {}
    for number in pitch.unique().tolist():
        mine = (train.labels["pitch"] == number).nonzero()[:, 0]
        if len(mine) > 1:
            by_pitch[number] = Components.of(train.select(mine.tolist()), dim)
    own = [
        by_pitch.get(number, everywhere)(rows[None])
        for number, rows in zip(pitch.tolist(), levels, strict=True)
    ]
    return everywhere(levels), torch.cat(own)


def hear(levels: Tensor, originals: Tensor, what: str, progress: bool) -> Heard:
    """Makes levels `(B, T, F)` into sound and listens to it."""
    rows = []
    for start in track(range(0, len(levels), CHUNK_NOTES), f"hearing: {what}", shown=progress):
        samples = spectrum.synthesise(levels[start : start + CHUNK_NOTES].clamp(0, 1))
        again = spectrum.analyse(samples)
        distance = spectrum.log_spectral_distance(again, originals[start : start + CHUNK_NOTES])
        rows.append(Heard(distance, find_pitch(samples), spectrum.centroid(again)))
    return Heard(*(torch.cat(column) for column in zip(*rows, strict=True)))


def speed(model: Model, *, num: int = 200) -> float:
    """Seconds of sound that are made of codes in a second, on as many cores as PyTorch uses."""
    codes = torch.zeros(num, model.z_dim)
    began = time.perf_counter()
    levels = model.decode_tensor(codes, {"pitch": 69})[:, 0].clamp(0, 1)
    for start in range(0, num, CHUNK_NOTES):
        spectrum.synthesise(levels[start : start + CHUNK_NOTES])
    sound = num * spectrum.num_samples(spectrum.NUM_FRAMES) / spectrum.SAMPLE_RATE
    return sound / (time.perf_counter() - began)


def distance_of(a: Sound, b: Sound) -> float:
    """The log-spectral distance of two notes in decibels, each from its onset."""
    return float(spectrum.log_spectral_distance(levels_of(a), levels_of(b))[0])


def centroid_of(sound: Sound) -> float:
    """The spectral centroid of a note in hertz."""
    return float(spectrum.centroid(levels_of(sound))[0])


def levels_of(sound: Sound) -> Tensor:
    """The levels `(1, T, F)` of a note from its onset."""
    return spectrum.analyse(spectrum.fit_length(align_note(sound).samples)[None])


def evenly(notes: Examples, limit: int | None) -> Examples:
    """At most so many notes, spread over all of them."""
    if limit is None or limit >= len(notes):
        return notes
    return notes.select(i * len(notes) // limit for i in range(limit))


def prepared(notes: Examples) -> Tensor:
    """Levels `(B, T, F)`."""
    return notes.y[:, 0].float() / 255


def kept(found: Tensor, pitch: Tensor) -> float:
    return share((found - pitch).abs()[:, None] < 0.5)


def share(rows: Tensor) -> float:
    """How many of the rows `(B, S)` are true throughout."""
    return float(rows.all(1).float().mean())
