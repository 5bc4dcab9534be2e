"""The paper's tables on one's own data (Roberts et al. 2018, sections 5 and 6).

Everything is measured on the test split, whose tunes no training has seen and whose windows occur
in none of its tunes, in whatever key. The rate stands beside every accuracy.

Axes: B windows, T steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ae_music.grid import KNOWN_METERS, LOWEST_KEY
from ae_music.latent.attributes import (
    ATTRIBUTE_MEASURES,
    combine,
    directions,
    intervals,
    pitch_classes,
)
from ae_music.latent.attributes import measure as measure_attributes
from ae_music.modality import modality_of
from ae_toolkit import Examples, Model
from ae_toolkit.console import track
from ae_toolkit.data.examples import from_option, load_data
from ae_toolkit.inference import latent

HELD_OUT = "by tune; windows that also occur in training, in any key, are dropped"

INTERPOLATION_STEPS = 11  #: of an interpolation, both ends included
CHUNK_WINDOWS = 250  #: windows at once


class Numbers(NamedTuple):
    """What was measured; shares are of one."""

    report: dict[str, Any]
    curves: dict[str, list[float]]  #: mean Hamming distance to A along the way, by method


def measure(
    model: Model,
    *,
    data: str | None = None,
    limit: int | None = None,
    pairs: int = 1000,
    samples: int = 2000,
    shifts: int = 500,
    seed: int = 0,
    progress: bool = False,
) -> Numbers:
    """Measures a model of melodies.

    Args:
        model: what to measure.
        data: a data set or path instead of the one that the model was trained on.
        limit: measure reconstruction on the first so many windows only.
        pairs: interpolations.
        samples: melodies drawn from the prior.
        shifts: windows whose attributes are shifted.
        seed: of posterior samples, notes and pairs.
        progress: show a bar.
    """
    modality_of(model)
    recipe = model.recipe
    if data is not None:
        recipe = recipe.with_({"data": from_option(data).model_dump()})
    train = load_data(recipe, model.modality, "train")
    test = load_data(recipe, model.modality, "test")
    some = test if limit is None else test.select(range(min(limit, len(test))))
    path = interpolation(model, test, pairs=pairs, seed=seed)
    report = {
        "model": recipe.name,
        "data": recipe.data.name,
        "split": "test",
        "num_windows": len(some),
        "num_tunes": len({*some.groups}),
        "held_out": HELD_OUT if data is None else f"by file, of {data}, which the model may know",
        "seed": seed,
        **reconstruction(model, some, seed=seed, progress=progress),
        "interpolation": path.report,
        "samples": prior_samples(model, train, num=samples, seed=seed),
        "shift": shifted(model, test, num=shifts, seed=seed),
        "decoded_per_second": speed(model),
    }
    return Numbers(report, path.curves)


@torch.inference_mode()
def reconstruction(
    model: Model, examples: Examples, *, seed: int, progress: bool = False
) -> dict[str, float]:
    """Rate and distortion in nats, and shares of steps that are right.

    `accuracy_sampled`: z drawn from the posterior and every note drawn at temperature 1, freely
    running; `accuracy_mean` and `exact`: the most likely notes from the posterior mean;
    `accuracy_teacher_forced`, of autoregressive decoders: the most likely next step after the right
    ones, z drawn.
    """
    from ae_toolkit.parts.backbones.sequence import Autoregressive

    net, source = model.autoencoder, model.noise_source(seed, "melodies")
    taught = isinstance(net.decoder, Autoregressive)
    rows: dict[str, list[Tensor]] = {}
    starts = track(range(0, len(examples), CHUNK_WINDOWS), "measuring", shown=progress)
    for start in starts:
        batch, step = model.to_device(examples, start, start + CHUNK_WINDOWS), source.step(start)
        y, mask = batch.y, batch.mask
        made = net(batch, step)
        c, code = made.c, made.code
        drawn = net.decode(code.z, c, step, mask=mask, temperature=1.0)
        guess = net.decode(net.bottleneck.mean(made.h, c), c, step, mask=mask)
        judged = model.modality.metrics(y, guess, mask)
        values = {
            "rate": code.rate.sum(-1)[0],
            "distortion": made.terms.distortion[0],
            "accuracy_sampled": model.modality.metrics(y, drawn, mask)["accuracy"],
            "accuracy_mean": judged["accuracy"],
            "exact": judged["exact"],
        }
        if taught:
            forced = model.modality.metrics(y, made.params.argmax(1), mask)
            values["accuracy_teacher_forced"] = forced["accuracy"]
        for name, value in values.items():
            rows.setdefault(name, []).append(value.double())
    return {name: float(torch.cat(values).mean()) for name, values in rows.items()}


class Walked(NamedTuple):
    report: dict[str, float]
    curves: dict[str, list[float]]


@torch.inference_mode()
def interpolation(model: Model, examples: Examples, *, pairs: int, seed: int) -> Walked:
    """How steadily one window becomes another: Hamming distances to A itself along the great arc.

    Beside it, as a curve, the data-space baseline of the paper (section 6.2): every step of the
    grid is taken from A or, with a probability that rises along the way, from B.
    """
    rng = np.random.default_rng(seed)
    first, second = _pairs(examples, pairs, rng)
    model.need_real_codes()
    codes = model.encode_examples(examples.select([*first, *second])).cpu()
    a, b = codes[: len(first)], codes[len(first) :]
    arcs = torch.stack([latent.slerp(x, y, INTERPOLATION_STEPS) for x, y in zip(a, b, strict=True)])
    labels = {"meter": examples.labels["meter"][torch.tensor(first)]}
    made = torch.stack(
        [model.decode_tensor(arcs[:, i], labels) for i in range(INTERPOLATION_STEPS)], 1
    ).numpy()
    ends = examples.y[torch.tensor(first)].numpy(), examples.y[torch.tensor(second)].numpy()
    real = model.modality.mask(labels, len(first))
    assert real is not None, "windows of melodies have meters"
    share = np.linspace(0, 1, INTERPOLATION_STEPS)[None, :, None]
    mixed = np.where(rng.random(made.shape) < share, ends[1][:, None], ends[0][:, None])

    def distance(rows: NDArray[Any], to: NDArray[Any]) -> NDArray[np.float64]:
        differ = (rows != to[:, None]) & real.numpy()[:, None]
        return differ.sum(2) / real.numpy().sum(1)[:, None]

    ours, theirs = distance(made, ends[0]), distance(mixed, ends[0])
    change = np.diff(ours, axis=1)
    curves = {"model": ours.mean(0).tolist(), "mix": theirs.mean(0).tolist()}
    return Walked(
        {
            "num_pairs": len(first),
            "monotone_steps": float((change >= 0).mean()),
            "rising_steps": float((change > 0).mean()),
            "mean_curve_is_monotone": bool((np.diff(curves["model"]) >= 0).all()),
            "largest_step": float(change.max(1).mean()),
        },
        curves,
    )


def _pairs(examples: Examples, num: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Pairs of windows of one meter, by the meters' shares, from different tunes."""
    meters = examples.labels["meter"].numpy()
    first = rng.choice(len(examples), num)
    second = []
    for i in first:
        alike = np.flatnonzero(meters == meters[i])
        others = [j for j in rng.choice(alike, 20) if examples.groups[j] != examples.groups[i]]
        second.append(int(others[0] if others else rng.choice(alike)))
    return first.tolist(), second


@torch.inference_mode()
def prior_samples(model: Model, train: Examples, *, num: int, seed: int) -> dict[str, float]:
    """How like the corpus the prior's melodies are, in the corpus's proportion of meters.

    Codes are drawn, notes are the most likely ones. Total variation distances of histograms, half
    the sum of absolute differences: of the number of notes in a window (those of two bars one by
    one, of longer windows as many at a time as they are longer), of pitch classes and of intervals;
    and the shares of copies of training windows.
    """
    rng = np.random.default_rng(seed)
    meters = torch.from_numpy(rng.choice(train.labels["meter"].numpy(), num))
    labels = {"meter": meters}
    z = model.sample_codes(num, labels, seed=seed)
    mask = model.modality.mask(labels, num)
    assert mask is not None, "windows of melodies have meters"
    made = (model.decode_tensor(z, labels) * mask).byte().numpy()
    corpus = train.y.numpy()
    known = {(int(m), row.tobytes()) for m, row in zip(train.labels["meter"], corpus, strict=True)}
    copies = [(int(m), row.tobytes()) in known for m, row in zip(meters, made, strict=True)]
    prints = model.modality.fingerprints
    in_any_key = {*prints(train.y)}
    half_bars = modality_of(model).bars // 2 or 1
    notes = [(rows >= LOWEST_KEY).sum(1) // half_bars for rows in (made, corpus)]
    return {
        "num": num,
        "density_tv": total_variation(*notes),
        "pitch_class_tv": total_variation(pitch_classes(made), pitch_classes(corpus)),
        "interval_tv": total_variation(intervals(made), intervals(corpus)),
        "copies": float(np.mean(copies)),
        "copies_in_any_key": float(np.mean([p in in_any_key for p in prints(torch.tensor(made))])),
    }


def total_variation(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Half the sum of absolute differences of two histograms of whole numbers."""
    low = min(a.min(initial=0), b.min(initial=0))
    high = max(a.max(initial=0), b.max(initial=0)) + 1
    shares = [np.bincount(x - low, minlength=high - low) / max(len(x), 1) for x in (a, b)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


@torch.inference_mode()
def shifted(
    model: Model, examples: Examples, *, num: int, seed: int, amount: float = 2.0
) -> dict[str, dict[str, float]]:
    """For each attribute: how often its direction, `amount` times, raises it, and what it costs."""
    bars = modality_of(model).bars
    rng, given = np.random.default_rng(seed), directions(model)
    some = examples.select(rng.choice(len(examples), min(num, len(examples)), replace=False))
    meters, bars = some.labels["meter"], modality_of(model).bars
    codes = model.encode_examples(some).cpu()

    def decoded(z: Tensor, meters: Tensor) -> NDArray[np.uint8]:
        mask = model.modality.mask({"meter": meters}, len(z))
        assert mask is not None, "windows of melodies have meters"
        return (model.decode_tensor(z, {"meter": meters}) * mask).byte().numpy()

    found = {}
    for name in ATTRIBUTE_MEASURES:
        known = given[name].any(1)[meters].nonzero()[:, 0]  # a meter may have no direction
        if not len(known):
            continue
        z, mine = codes[known], meters[known]
        ways = torch.stack([combine(given, {name: amount}, meter=int(m)) for m in mine])
        plain, made = decoded(z, mine), decoded(z + ways, mine)
        before, after = (
            measure_attributes(rows, mine.numpy(), bars=bars, names=[name])[name]
            for rows in (plain, made)
        )
        lengths = bars * np.array([meter.steps for meter in KNOWN_METERS])[mine.numpy()]
        found[name] = {
            "num": len(known),
            "raised": float((after > before).mean()),
            "before": float(before.mean()),
            "after": float(after.mean()),
            "hamming": float(((made != plain).sum(1) / lengths).mean()),
        }
    return found


@torch.inference_mode()
def speed(model: Model, *, num: int = 2000) -> float:
    """Melodies decoded in a second, the better of two tries."""
    labels = {"meter": torch.zeros(num, dtype=torch.long)}
    z = model.sample_codes(num, labels)
    best = 0.0
    for _ in range(2):
        began = time.perf_counter()
        model.decode_tensor(z, labels)
        best = max(best, num / (time.perf_counter() - began))
    return best


#: What the paper reports, where it reports the same (tables 1 and 2; 28 million melodies, GPUs).
MUSICVAE_PAPER = {
    2: {"accuracy_teacher_forced": 0.986, "accuracy_sampled": 0.951},
    16: {"accuracy_teacher_forced": 0.919, "accuracy_sampled": 0.812},
}


def table(report: Mapping[str, Any], *, bars: int) -> Iterator[str]:
    """A report as people read it, with the paper's numbers where there are any."""
    paper = MUSICVAE_PAPER.get(bars, {})
    yield (
        f"{report['model']} on {report['num_windows']:,} windows of {report['num_tunes']} tunes of "
        f"{report['data']}, held out {report['held_out']}"
    )
    for key, words in MEASURE_WORDS.items():
        if key in report:
            beside = f"   (MusicVAE {paper[key]:.3f})" if key in paper else ""
            yield f"  {words:54} {report[key]:8.3f}{beside}"
    walk = report["interpolation"]
    words = f"steps of {walk['num_pairs']} interpolations that do not turn back"
    yield f"  {words:54} {walk['monotone_steps']:8.3f}"
    yield f"  {'the largest of their steps, in the mean':54} {walk['largest_step']:8.3f}"
    drawn = report["samples"]
    yield f"{drawn['num']:,} samples of the prior against the corpus, total variation"
    for key, words in SAMPLE_WORDS.items():
        yield f"  {words:54} {drawn[key]:8.3f}"
    yield "attributes of held-out windows, +2 along their directions"
    for name, row in report["shift"].items():
        change = f"{row['before']:.3f} -> {row['after']:.3f}"
        yield (
            f"  {name:18} raised in {row['raised']:.0%}, {change}, "
            f"{row['hamming']:.0%} of steps changed"
        )
    yield f"decoded: {report['decoded_per_second']:,.0f} melodies a second"


MEASURE_WORDS = {
    "rate": "rate, nats",
    "distortion": "distortion, nats",
    "accuracy_teacher_forced": "next step, after the right ones",
    "accuracy_sampled": "reconstruction, z and notes drawn at temperature 1",
    "accuracy_mean": "reconstruction, posterior mean, most likely notes",
    "exact": "windows that this gives back whole",
}
SAMPLE_WORDS = {
    "density_tv": "notes in a window",
    "pitch_class_tv": "pitch classes",
    "interval_tv": "intervals",
    "copies": "share that are copies of training windows",
    "copies_in_any_key": "share that are copies in some key",
}
