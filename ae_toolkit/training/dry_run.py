"""What a training will be, before it is one: shapes, sizes, memory and time.

    ae train RECIPE --dry-run

Everything is built as `fit` builds it, and a few steps are taken on real batches and forgotten.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.console import duration
from ae_toolkit.contracts import Batch, Shape
from ae_toolkit.data.batches import WINDOW_BYTES
from ae_toolkit.data.examples import ON_DEVICE, Examples
from ae_toolkit.device import pick_device
from ae_toolkit.modality import Modality
from ae_toolkit.randomness import Source, replay
from ae_toolkit.recipe import Recipe
from ae_toolkit.training.compilation import compiling
from ae_toolkit.training.distributed import Ranks
from ae_toolkit.training.engine import Engine
from ae_toolkit.training.memory import saved_bytes
from ae_toolkit.training.setup import prepare
from ae_toolkit.training.step import compute_loss, make_step, take_step
from ae_toolkit.training.validation import CHUNK_EXAMPLES, validate

MAX_TIMED_STEPS = 30  #: at most, that are measured
MAX_TIMED_SECONDS = 2.0  #: after which no further one is begun
WARMUP_STEPS = 3  #: steps that are not counted: compilation, allocation, first touches


class Estimate(NamedTuple):
    """What `ae train` would do.

    Attributes:
        recipe: its name.
        shapes: along the line, of one example; several where there are several levels.
        parameters: of every part that has some, and `all`.
        memory: bytes of weights, gradients, what the optimiser keeps, averaged weights, activations
            of one batch (what the backward pass waits for, uncompiled), data, and `all`.
        examples: that are learned from.
        held_out: examples.
        batch_size: examples in a batch.
        steps: of the optimiser, in all.
        epochs: passes over the examples.
        engine: precision, device and so on, in words.
        first_seconds: what the first step takes beyond the others, such as to compile.
        step_seconds: of one step, the median of some.
        examples_per_second: in training, without validations.
        seconds: of the whole training, validations included, figures and checkpoints not.
    """

    recipe: str
    shapes: Mapping[str, list[Shape]]
    parameters: Mapping[str, int]
    memory: Mapping[str, int]
    examples: int
    held_out: int
    batch_size: int
    steps: int
    epochs: float
    engine: str
    first_seconds: float
    step_seconds: float
    examples_per_second: float
    seconds: float


def estimate(recipe: Recipe, *, device: str = "auto") -> Estimate:
    """Measures what a recipe would take, and leaves nothing behind.

    Args:
        recipe: as for `fit`.
        device: as for `fit`.

    Raises:
        UsageError: the recipe cannot be built.
        RunError: the data cannot be read.
    """
    recipe.check()
    train, where = recipe.train, pick_device(device)
    engine = Engine.pick(train, where)
    setup = prepare(recipe, engine, where, Ranks())
    model, modality, schedule = setup.model, setup.modality, setup.schedule
    examples, held_out, optimizer = setup.examples, setup.held_out, setup.optimizer
    one = make_step(setup, compiled=engine.compiled)
    [coefficients] = optimizer.coefficients(
        [train.lr * schedule.factor(0)], first=0, steps=schedule.steps
    )

    def step(number: int) -> None:
        take_step(setup, one, number, coefficients)

    first = setup.batches.at(0)
    shapes = _shapes(model, modality, first, Source(train.seed, "train", where))
    drawn = setup.noise.draw(0)
    known = [*model.parameters(), *model.buffers(), *drawn, *_tensors(first)]
    now = replay(torch.zeros((), device=where), drawn)
    activations = saved_bytes(lambda: compute_loss(setup, first, now)[0], known)
    with compiling() if engine.compiled else nullcontext():
        times = _times(step, where)
    usual = statistics.median(times[1:])
    at_first = max(times[0] - usual, 0.0)
    checking = 0.0
    if len(held_out):
        some = held_out.select(range(min(CHUNK_EXAMPLES, len(held_out))))
        began = time.perf_counter()
        validate(optimizer.ema_model(), modality, setup.objective, some, train, Ranks())
        checking = (time.perf_counter() - began) * len(held_out) / len(some)
    validations = -(-schedule.steps // schedule.evaluate_every)

    weights = _bytes(model.state_dict())
    memory = {
        "weights": weights,
        "gradients": _bytes([w for w in model.parameters() if w.requires_grad]),
        "optimiser": _bytes([*optimizer.first, *optimizer.second]),
        "averaged weights": _bytes(optimizer.average),
        "activations": activations,
        "data": _data_bytes(examples) + _data_bytes(held_out),
    }
    return Estimate(
        recipe=recipe.name,
        shapes=shapes,
        parameters=_parameters(model),
        memory=memory | {"all": sum(memory.values())},
        examples=len(examples),
        held_out=len(held_out),
        batch_size=schedule.batch_size,
        steps=schedule.steps,
        epochs=train.epochs,
        engine=str(engine),
        first_seconds=at_first,
        step_seconds=usual,
        examples_per_second=schedule.per_step / usual,
        seconds=at_first + schedule.steps * usual + validations * checking,
    )


def _shapes(
    model: Autoencoder, modality: Modality, batch: Batch, noise: Source
) -> dict[str, list[Shape]]:
    """Shapes as they come out of the parts, with the batch axis taken off."""
    step = noise.step(0)
    with torch.no_grad():
        batch = batch.first(2)
        made = model(batch._replace(y=modality.prepare(batch.y)), step)
    line = {"y": [made.y], "x": [made.x], "h": made.h, "z": made.code.z, "params": [made.params]}
    return {name: [tuple(t.shape[1:]) for t in tensors] for name, tensors in line.items()}


def _parameters(model: Autoencoder) -> dict[str, int]:
    """Of every part, the prior apart from the bottleneck that holds it; and of all."""
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    prior = getattr(model.bottleneck, "prior", None)
    if isinstance(prior, nn.Module) and isinstance(model.bottleneck, nn.Module):
        counts["prior"] = sum(p.numel() for p in prior.parameters())
        counts["bottleneck"] -= counts["prior"]
    counts = {name: count for name, count in counts.items() if count}
    return counts | {"all": model.num_parameters()}


def _times(step: Callable[[int], None], device: torch.device) -> list[float]:
    """Seconds of the first step, then of as many usual ones as there is time for."""
    times: list[float] = []
    ends = float("inf")
    while len(times) < WARMUP_STEPS + MAX_TIMED_STEPS and (
        len(times) < WARMUP_STEPS + 2 or time.perf_counter() < ends
    ):
        if len(times) == WARMUP_STEPS:
            ends = time.perf_counter() + MAX_TIMED_SECONDS
        began = time.perf_counter()
        step(len(times))
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - began)
    return [times[0], *times[WARMUP_STEPS:]]


def _tensors(tree: Any) -> Iterable[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)


def _bytes(tree: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(tree))


def _data_bytes(examples: Examples) -> int:
    """What is in memory of some examples; of those that are read ahead, two windows."""
    return examples.nbytes if examples.nbytes <= ON_DEVICE else 2 * WINDOW_BYTES


def in_words(found: Estimate) -> str:
    """An estimate for people, a line for each thing."""

    def listed(title: str, rows: Mapping[str, str]) -> list[str]:
        return [title, *(f"  {name:17} {value}" for name, value in rows.items())]

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
    return "\n".join(
        [
            *listed(f"{found.recipe}: shapes of one example", shapes),
            *listed("parameters", {k: f"{v:>13,}" for k, v in found.parameters.items()}),
            *listed("memory", {k: f"{v / 1e6:>13,.1f} MB" for k, v in found.memory.items()}),
            *listed("training", training),
        ]
    )
