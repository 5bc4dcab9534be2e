"""What a training will be, before it is one: shapes, sizes and time.

    ae train RECIPE --dry-run

Everything is built as `fit` builds it, and a few steps are taken on real batches and forgotten.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn

from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.console import duration
from ae_toolkit.contracts import Shape
from ae_toolkit.device import pick_device
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import Recipe
from ae_toolkit.training import memory
from ae_toolkit.training.compilation import compiling, time_step
from ae_toolkit.training.distributed import Ranks
from ae_toolkit.training.engine import Engine
from ae_toolkit.training.setup import Setup, prepare
from ae_toolkit.training.step import make_step
from ae_toolkit.training.validation import CHUNK_EXAMPLES, validate

MAX_TIMED_STEPS = 30  #: at most, that are measured
MAX_TIMED_SECONDS = 2.0  #: after which no further one is begun
WARMUP_STEPS = 3  #: steps that are not counted: compilation, allocation, first touches


class Estimate(NamedTuple):
    """What `ae train` would do."""

    recipe: str  #: its name
    shapes: Mapping[str, list[Shape]]  #: along the line, of one example; of every level
    parameters: Mapping[str, int]  #: of every part that has some, and `all`
    examples: int  #: that are learned from
    held_out: int
    batch_size: int
    steps: int  #: of the optimiser, in all
    epochs: float
    engine: str  #: precision, device and so on, in words
    first_seconds: float  #: what the first step takes beyond the others, such as to compile
    step_seconds: float  #: of one step, the median of some
    examples_per_second: float  #: in training, without validations
    seconds: float  #: of the whole training with validations, without figures and checkpoints


def estimate(recipe: Recipe, *, device: str = "auto") -> Estimate:
    """Measures what a recipe would take, and leaves nothing behind.

    Args:
        recipe: as for `fit`.
        device: as for `fit`.

    Raises:
        UsageError: the recipe cannot be built.
        RunError: the data cannot be read, or memory does not suffice.
    """
    recipe.check()
    where = pick_device(device)
    engine = Engine.pick(recipe.train, where)
    setup = prepare(recipe, engine, where, Ranks())
    schedule, shapes = setup.schedule, _shapes(setup)
    enough = memory.enough_for(schedule.batch_size, accumulate=recipe.train.accumulate)
    with enough, compiling() if engine.compiled else nullcontext():
        first, *times = _step_seconds(setup)
    usual = statistics.median(times)
    at_first = max(first - usual, 0.0)
    validations = -(-schedule.steps // schedule.evaluate_every)
    return Estimate(
        recipe=recipe.name,
        shapes=shapes,
        parameters=_parameters(setup.model),
        examples=len(setup.examples),
        held_out=len(setup.held_out),
        batch_size=schedule.batch_size,
        steps=schedule.steps,
        epochs=recipe.train.epochs,
        engine=str(engine),
        first_seconds=at_first,
        step_seconds=usual,
        examples_per_second=schedule.per_step / usual,
        seconds=at_first + schedule.steps * usual + validations * _validation_seconds(setup),
    )


@torch.no_grad()
def _shapes(setup: Setup) -> dict[str, list[Shape]]:
    """Shapes as they come out of the parts, with the batch axis taken off."""
    batch, noise = setup.batches.at(0).first(2), Source(setup.train.seed, "train", setup.device)
    made = setup.model(batch._replace(y=setup.modality.prepare(batch.y)), noise.step(0))
    line = {"y": [made.y], "x": [made.x], "h": made.h, "z": made.code.z, "params": [made.params]}
    return {name: [tuple(t.shape[1:]) for t in tensors] for name, tensors in line.items()}


def _parameters(model: Autoencoder) -> dict[str, int]:
    """Of every part, the prior apart from the bottleneck that holds it; and of all."""
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    prior = getattr(model.bottleneck, "prior", None)
    if isinstance(prior, nn.Module) and "bottleneck" in counts:
        counts["prior"] = sum(p.numel() for p in prior.parameters())
        counts["bottleneck"] -= counts["prior"]
    counts = {name: count for name, count in counts.items() if count}
    return counts | {"all": model.num_parameters()}


def _step_seconds(setup: Setup) -> list[float]:
    """Seconds of the first step, then of as many usual ones as there is time for."""
    step = make_step(setup, compiled=setup.engine.compiled)
    times: list[float] = []
    while len(times) < WARMUP_STEPS + MAX_TIMED_STEPS and (
        len(times) < WARMUP_STEPS + 2 or sum(times[WARMUP_STEPS:]) < MAX_TIMED_SECONDS
    ):
        times.append(time_step(setup, step, len(times)))
    return [times[0], *times[WARMUP_STEPS:]]


def _validation_seconds(setup: Setup) -> float:
    """Seconds that a look at all held-out examples takes, as a part of them says."""
    held_out, model = setup.held_out, setup.optimizer.ema_model()
    if not len(held_out):
        return 0.0
    some = held_out.select(range(min(CHUNK_EXAMPLES, len(held_out))))
    began = time.perf_counter()
    validate(model, setup.modality, some, setup.train, Ranks())
    return (time.perf_counter() - began) * len(held_out) / len(some)


def in_words(found: Estimate) -> str:
    """An estimate for people, a line for each thing."""
    shapes = {
        name: ", ".join("x".join(map(str, shape)) for shape in levels)
        for name, levels in found.shapes.items()
    }
    rest = f" + {found.first_seconds:.1f} s at first" if found.first_seconds > 1 else ""
    training = {
        "examples": f"{found.examples:,}, and {found.held_out:,} held out",
        "steps": f"{found.steps:,} of {found.batch_size:,} examples, {found.epochs:g} epochs",
        "engine": found.engine,
        "a step": f"{found.step_seconds * 1000:.2f} ms{rest}, "
        f"{found.examples_per_second:,.0f} examples/s",
        "all": f"about {duration(found.seconds)}",
    }
    tables = {
        f"{found.recipe}: shapes of one example": shapes,
        "parameters": {name: f"{num:>13,}" for name, num in found.parameters.items()},
        "training": training,
    }
    lines: list[str] = []
    for title, rows in tables.items():
        lines += [title, *(f"  {name:17} {value}" for name, value in rows.items())]
    return "\n".join(lines)
