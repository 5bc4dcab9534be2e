"""What a training works with, made ready by `prepare`: data in batches, model, optimiser, noise.

`fit` trains with it; a dry run only measures it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ae_toolkit.autoencoder import Autoencoder, augmented
from ae_toolkit.console import log
from ae_toolkit.contracts import Objective, StepContext
from ae_toolkit.data.batches import Batches
from ae_toolkit.data.examples import (
    LOOKED_AT_BYTES,
    Examples,
    load_data,
    need_finite,
    train_test_split,
    with_statistics,
)
from ae_toolkit.errors import PluginError, RunError, UsageError, describe_error
from ae_toolkit.modality import Modality
from ae_toolkit.parts.backbones.covering import use_full_kernel
from ae_toolkit.randomness import NoiseRecorder, Source
from ae_toolkit.recipe import Recipe, Train
from ae_toolkit.registry import find_plugin_in_traceback
from ae_toolkit.runs import checkpoint
from ae_toolkit.training import memory
from ae_toolkit.training.distributed import Ranks, check_batch
from ae_toolkit.training.engine import Engine
from ae_toolkit.training.optimizer import EMAOptimizer, freeze_parts
from ae_toolkit.training.schedule import Schedule

MAX_TARGET_CHUNKS = 50  #: of data whose targets are checked before a training, 64 MB of floats each


@dataclass(frozen=True)
class Setup:
    """Everything that a training works with.

    Attributes:
        recipe: what is built and how it is trained.
        train: its settings of the training.
        engine: by which device and precision, compiled or not.
        device: where the work is done.
        ranks: the processes that work together.
        modality: the data type.
        examples: to learn from.
        held_out: to validate on.
        batches: of `examples`, those of this rank.
        schedule: how many steps, and how far each may go.
        model: whose weights are learned.
        wrapped_model: what a batch is given to: `model`, or what makes ranks of it.
        objective: what makes a loss of the model's terms.
        optimizer: moves the weights, and their average after them.
        noise: what a step asks for, drawn ahead.
    """

    recipe: Recipe
    train: Train
    engine: Engine
    device: torch.device
    ranks: Ranks
    modality: Modality
    examples: Examples
    held_out: Examples
    batches: Batches
    schedule: Schedule
    model: Autoencoder
    wrapped_model: nn.Module
    objective: Objective
    optimizer: EMAOptimizer
    noise: NoiseRecorder


def prepare(
    recipe: Recipe,
    engine: Engine,
    device: torch.device,
    ranks: Ranks,
    *,
    init_from: Path | None = None,
    say: Callable[[str], object] = lambda sentence: None,
) -> Setup:
    """Reads the data, builds the model and tries a first step.

    Args:
        recipe: what to build.
        engine: how to work.
        device: where to work.
        ranks: the processes that work together.
        init_from: a run or a model whose weights are taken where they fit.
        say: is told what is done next.

    Raises:
        UsageError: the recipe cannot be built, or its batches cannot be shared by the ranks.
        RunError: the data cannot be read, memory does not suffice, or a part breaks its contract.
    """
    train = recipe.train
    check_batch(train, ranks.num)
    modality: Modality = recipe.make("modality")
    everything = ranks.main_process_first(lambda: load_data(recipe, modality, "train"))
    examples, held_out = train_test_split(everything, train.validation, seed=train.seed)
    del everything
    recipe = with_statistics(recipe, modality, examples)
    modality = recipe.make("modality")
    examples = examples.to(device)
    schedule = Schedule.of(train, len(examples), num_ranks=ranks.num)
    if schedule.batch_size < train.batch_size:
        log(
            f"train.batch_size is {train.batch_size}, but there are {len(examples)} examples: "
            f"each batch holds {schedule.batch_size}"
        )
    batches = Batches.of(
        examples,
        batch_size=schedule.batch_size,
        batches=schedule.batches,
        seed=train.seed,
        device=device,
        rank=ranks.rank,
        num_ranks=ranks.num,
    )
    model, wrapped_model, optimizer = _build(recipe, modality, device, ranks, init_from)
    for part in (examples, held_out):
        _check_targets(recipe, modality, model, part)
    _check_codebook(model, len(examples))
    say("Trying a first step")
    noise = _try_first_step(recipe, engine, modality, model, batches, ranks)
    return Setup(
        recipe,
        train,
        engine,
        device,
        ranks,
        modality,
        examples,
        held_out,
        batches,
        schedule,
        model,
        wrapped_model,
        model.objective,
        optimizer,
        noise,
    )


def _check_codebook(model: Autoencoder, num_examples: int) -> None:
    """Raises UsageError where a codebook has more values than the data can make codes."""
    num_codes = num_examples * sum(math.prod(shape) for shape in model.bottleneck.z_shapes)
    if model.num_classes > num_codes:
        raise UsageError(
            f"the codebook has {model.num_classes:,} values, and {num_examples:,} examples make "
            f"{num_codes:,} codes only: choose a smaller one"
        )


@torch.no_grad()
def _check_targets(
    recipe: Recipe, modality: Modality, model: Autoencoder, examples: Examples
) -> None:
    """Makes sure that the likelihood is one of the data: of all of it, or of much where it is huge.

    Raises:
        UsageError: it is not; the sentence says for what it is, and what the data holds.
        RunError: a number of the data is not finite, or a part breaks its contract.
    """
    device = next(model.parameters()).device
    source = Source(recipe.train.seed, "targets", device)
    num = max(LOOKED_AT_BYTES // (4 * math.prod(examples.shape)), 1)
    starts = range(0, len(examples), num)
    for start in starts[:: max(len(starts) // MAX_TARGET_CHUNKS, 1)]:
        batch = examples.at(range(start, min(start + num, len(examples)))).to(device)
        batch = batch._replace(y=modality.prepare(batch.y))
        if reason := model.misfit(batch, source.step(start)):
            need_finite(examples, modality)
            raise UsageError(f"likelihood {recipe.likelihood.name!r} {reason}")


def keep_statistics(recipe: Recipe, former: Recipe) -> Recipe:
    """Returns a recipe with what the data type of a run took from its data when that began."""
    if type(recipe.make("modality")).statistics is Modality.statistics:
        return recipe
    found, known = former.modality, recipe.modality.arguments
    if found.name != recipe.modality.name:
        return recipe
    return recipe.with_({f"modality.{k}": v for k, v in found.arguments.items() if k not in known})


def _build(
    recipe: Recipe,
    modality: Modality,
    device: torch.device,
    ranks: Ranks,
    init_from: Path | None,
) -> tuple[Autoencoder, nn.Module, EMAOptimizer]:
    """The model, what a batch is given to, and what moves the weights."""
    train = recipe.train
    sharded = ranks.shards(train)
    torch.manual_seed(train.seed)
    # Sharded weights are whole twice, on the CPU, before they are shared.
    copies = 2 if sharded else memory.WEIGHT_COPIES if device.type == "cpu" else 1
    with memory.enough_for_weights(copies=copies):
        model = Autoencoder(recipe, modality=modality)
        if init_from is not None:
            load_initial_weights(model, init_from)
        freeze_parts(model, train)
        if device.type == "cpu":
            use_full_kernel(model)
        if not sharded:
            model = model.to(device).to(memory_format=torch.channels_last)
        ema_model = copy.deepcopy(model).eval()
        wrapped_model = ranks.parallelize(model, train)
        if sharded:
            ranks.parallelize(ema_model, train)
        optimizer = EMAOptimizer(model, ema_model, train, prefer=recipe.distribution)
        model.train()
    return model, wrapped_model, optimizer


def _try_first_step(
    recipe: Recipe,
    engine: Engine,
    modality: Modality,
    model: Autoencoder,
    batches: Batches,
    ranks: Ranks,
) -> NoiseRecorder:
    """Runs a batch once, forward, to check the parts and to hear which noise they ask for.

    Raises:
        RunError: memory does not suffice, or a part does not do what its contract says.
    """
    train, batch = recipe.train, batches.at(0)
    source, objective = Source(train.seed, "train", batch.y.device), model.objective
    size, accumulate = len(batch.y), train.accumulate

    def loss_of(step: StepContext) -> Tensor:
        # With gradients, so that what does not fit in memory is said before the training begins.
        with torch.enable_grad(), engine.autocast():
            made = model(augmented(modality, batch, step), step, num_samples=objective.num_samples)
        return objective(made.terms, step).mean()

    before = [buffer.clone() for buffer in model.buffers()]
    if not ranks.shards(train):  # whose parts work within the whole only
        step = source.step(0, progress=0.0)
        with memory.enough_for(size, accumulate=accumulate), torch.no_grad(), engine.autocast():
            try:
                model.check(augmented(modality, batch.first(2), step), step, objective=objective)
            except PluginError as error:  # perhaps a part that compares many examples of a batch
                step = source.step(0, progress=0.0)
                try:
                    model.check(augmented(modality, batch, step), step, objective=objective)
                except PluginError:
                    raise error from None
    with memory.enough_for(size, accumulate=accumulate), _blaming_strangers(recipe):
        noise = NoiseRecorder(source, loss_of, rank=ranks.rank, num_ranks=ranks.num)
    # What a part counts of what it has seen must be the same in a training that is resumed.
    for buffer, former in zip(model.buffers(), before, strict=True):
        buffer.copy_(former)
    return noise


def load_initial_weights(model: Autoencoder, folder: Path) -> None:
    """Takes the weights of a run's best checkpoint, or of a model, where name and shape agree.

    Raises:
        UsageError: there is no model, or none of its weights fits.
        RunError: it is broken.
    """
    point = checkpoint.best(folder)
    folder = point.folder if point else folder
    if not (folder / checkpoint.WEIGHTS_FILE).exists():
        raise UsageError(f"{folder}: holds no model whose weights could be taken")
    mine, weights = model.state_dict(), checkpoint.load_weights(folder)
    fitting = {
        name: tensor
        for name, tensor in weights.items()
        if name in mine and mine[name].shape == tensor.shape
    }
    if not fitting:
        raise UsageError(f"{folder}: none of its weights has a name and a shape of this recipe's")
    model.load_state_dict(fitting, strict=False)
    left = [name for name in mine if name not in fitting]
    rest = f"; all else is new: {', '.join(left[:5])}{' …' * (len(left) > 5)}" if left else ""
    log(f"{len(fitting)} of {len(mine)} weights are those of {folder}{rest}")


@contextmanager
def _blaming_strangers(recipe: Recipe) -> Iterator[None]:
    """Names the packages whose parts do not fit, where what they gave ends in an error of ours.

    Raises:
        PluginError: the block failed, and the recipe has parts by others.
    """
    try:
        yield
    except Exception as error:
        strangers = recipe.strangers()
        if isinstance(error, RunError) or not strangers or find_plugin_in_traceback(error):
            raise
        raise PluginError(
            f"recipe {recipe.name!r}, with parts of {', '.join(strangers)}, fails at its first "
            f"step: {describe_error(error)}"
        ) from error
