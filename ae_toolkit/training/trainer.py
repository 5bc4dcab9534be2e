"""Training: one loop, read downward without jumping.

    from ae_toolkit import fit
    fit(recipe, "runs/mine")        # or: ae train RECIPE --out runs/mine

The order of the data and the noise of every step follow from the seed and the step's number, and a
checkpoint holds the rest, so a run that was killed at any instant resumes bit for bit on the same
machine. Several ranks, started by `torchrun`, do the same work as one.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from ae_toolkit.console import Bar, duration, is_main_process, log
from ae_toolkit.contracts import Callback
from ae_toolkit.device import pick_device
from ae_toolkit.errors import Interrupted, RunError, UsageError
from ae_toolkit.recipe import Recipe
from ae_toolkit.runs import checkpoint, directory
from ae_toolkit.runs.lock import locked
from ae_toolkit.runs.logs import Logs
from ae_toolkit.training import memory
from ae_toolkit.training.callbacks import Callbacks, make_callbacks
from ae_toolkit.training.callbacks.checkpoints import Checkpoints
from ae_toolkit.training.callbacks.collapse import CollapseWarning
from ae_toolkit.training.callbacks.figures import Figures
from ae_toolkit.training.callbacks.metrics import Metrics
from ae_toolkit.training.callbacks.prior import FitPrior
from ae_toolkit.training.callbacks.profiler import Profiler
from ae_toolkit.training.callbacks.progress import Progress
from ae_toolkit.training.callbacks.trackers import Trackers
from ae_toolkit.training.compilation import choose_step, compile_seconds, compiling
from ae_toolkit.training.distributed import Ranks, launched, local_rank, process_group
from ae_toolkit.training.engine import Engine
from ae_toolkit.training.losses import LossReader
from ae_toolkit.training.resuming import find_resumable, wrap_misfit_errors
from ae_toolkit.training.setup import keep_statistics, prepare
from ae_toolkit.training.signals import Signals, stop_signals
from ae_toolkit.training.state import Training, TrainState
from ae_toolkit.training.step import TrainStep, make_step, take_step
from ae_toolkit.training.validation import check_monitor

NUM_COEFFICIENTS = 1000  #: steps whose coefficients are worked out at once


def fit(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    device: str = "auto",
    keep: int = 2,
    progress: bool = True,
    track: Iterable[str] = (),
    profile: bool = False,
    callbacks: Sequence[Callback | str] = (),
    init_from: Path | str | None = None,
) -> Path:
    """Trains a recipe and returns the run directory.

    Args:
        recipe: what to build, and how to train it.
        out: the run directory; it must not hold a run, unless `resume`. All ranks must see it.
        resume: go on from the last checkpoint in `out`.
        device: auto, cpu, cuda, cuda:1 … or mps.
        keep: how many of the last checkpoints stay, beside the best.
        progress: say how it goes on, and show a bar on a terminal.
        track: names of trackers that are told the numbers too, such as `tensorboard`.
        profile: record some steps into `profile.json`, and say what took longest.
        callbacks: of your own, or names of registered ones.
        init_from: the run or the model whose weights a new training begins with, where they fit.

    Raises:
        UsageError: the recipe cannot be built, `out` holds another run or one in training, or a
            tracker or callback is missing.
        RunError: the data cannot be read, or the training diverges; checkpoints stay.
        Interrupted: Ctrl-C or a request to terminate, after saving; a second one is at once.
    """
    recipe.check()
    run = Path(out)
    if keep < 1:
        raise UsageError(f"at least 1 checkpoint must be kept, not {keep}")
    where = pick_device(device, local_rank=local_rank() if launched() else None)
    told = tuple(track) if is_main_process() else ()
    trackers = Trackers(told, run=run, settings=recipe.model_dump(mode="json"))
    others = make_callbacks(callbacks)
    begun = run.is_dir()
    with (
        _stopping(recipe, run) as signals,
        process_group(where) as ranks,
        locked(run) if ranks.is_main_process else nullcontext(),
        closing(trackers),
        Bar(f"Reading {recipe.data.name}", shown=progress) as bar,
    ):
        if ranks.is_main_process:
            # What `torchrun` starts anew goes on where it stood.
            resume = resume or (
                ranks.remembers(str(run)) and (run / checkpoint.CONFIG_FILE).exists()
            )
        resume = ranks.broadcast(resume)
        if resume and (run / checkpoint.CONFIG_FILE).exists():
            recipe = keep_statistics(recipe, checkpoint.load_config(run).recipe)
        if ranks.is_main_process:
            directory.check_resumable(run, recipe, resume=resume, begun=begun)
            ranks.remember(str(run))
            directory.remove_temporaries(run)
        eager = any(callback.needs_gradients for callback in others)
        is_begun = resume and bool(checkpoint.folders(run))
        initial = None if init_from is None or is_begun else Path(init_from)
        training, step = _begin(
            recipe, run, where, ranks, bar, resume=resume, eager=eager, init_from=initial
        )
        signals.patient = True  # from here on, a step is finished and saved
        _train(
            training,
            step,
            Callbacks(
                [
                    *([Profiler()] if profile else []),
                    Progress(bar),
                    Figures(),
                    Metrics(),
                    trackers,
                    CollapseWarning(training.setup.objective),
                    *others,
                    Checkpoints(keep=keep),
                    FitPrior(),
                ]
            ),
            signals,
        )
        _check_saved(training)
    return run


def _begin(
    recipe: Recipe,
    run: Path,
    device: torch.device,
    ranks: Ranks,
    bar: Bar,
    *,
    resume: bool,
    eager: bool,
    init_from: Path | None,
) -> tuple[Training, TrainStep]:
    """Returns a training before its next step, and that step; `eager` steps keep gradients."""
    train = recipe.train
    engine, is_decided = Engine.pick(train, device, num_ranks=ranks.num), train.compile != "auto"
    if resume and (former := Engine.written(run)):
        engine, is_decided = engine.as_before(former, train), engine.device == former.device
    if eager:
        engine, is_decided = engine._replace(compiled=False), True
    setup = prepare(recipe, engine, device, ranks, init_from=init_from, say=bar.begin)
    check_monitor(setup)
    setup.optimizer.keeps_gradients = eager
    training, state = Training.begin(setup, run), None
    if resume and (
        folder := ranks.broadcast(find_resumable(run) if ranks.is_main_process else None)
    ):
        with wrap_misfit_errors(run):
            state = TrainState.load(folder)
            former_train = checkpoint.load_config(folder).recipe.train
            training.load_state_dict(state, former_epochs=former_train.epochs)
            setup.schedule.check_length(former_train, train, state.step)
    with memory.enough_for(setup.schedule.batch_size, accumulate=train.accumulate):
        if is_decided:
            step, is_compiled = make_step(setup, compiled=engine.compiled), engine.compiled
        else:
            step, is_compiled = choose_step(setup, bar, first=training.step)
    training.setup = setup = replace(setup, engine=engine._replace(compiled=is_compiled))
    if ranks.is_main_process:
        checkpoint.write_text(run / checkpoint.CONFIG_FILE, checkpoint.config_json(setup.recipe))
        setup.engine.write(run)
        sizes, waiting = (state.log_size, state.log_waiting) if state else ({}, {})
        training.logs = Logs(run, sizes, waiting)
    if training.is_finished:
        all_steps = training.step >= setup.schedule.steps
        more = f"epochs={2 * train.epochs:g}" if all_steps else "patience=0"
        log(f"{run} is finished: to go on, add --set train.{more}")
    elif is_compiled and is_decided:
        bar.begin(f"Compiling, which takes about {duration(compile_seconds(setup.optimizer))}")
    return training, step


def _train(training: Training, step: TrainStep, callbacks: Callbacks, signals: Signals) -> None:
    """Takes steps until the training is finished, or somebody stops it.

    Raises:
        RunError: it diverges, or memory does not suffice.
        Interrupted: somebody has stopped it; it is saved, if it could be.
    """
    setup, train = training.setup, training.setup.train
    enough = memory.enough_for(setup.schedule.batch_size, accumulate=train.accumulate)
    with enough, compiling() if setup.engine.compiled else nullcontext(), setup.batches:
        try:
            callbacks.on_start(training)
            losses, coefficients = LossReader(training, signals), _coefficients(training)
            while not training.is_finished:
                row = take_step(setup, step, training.step, next(coefficients))
                training.history[training.step % len(training.history)] = row
                training.step += 1
                callbacks.on_step(training)

                # Once in a while: look at the losses, validate, save, stop.
                if not losses.are_due():
                    continue
                losses.read()
                callbacks.on_losses(training)
                if training.is_validating:
                    losses.validate()
                    callbacks.on_validation(training)
                losses.go_on()
                if training.is_stopping:
                    raise _interrupted(training, signals)
        finally:
            callbacks.on_end(training)


def _coefficients(training: Training) -> Iterator[Tensor]:
    """The optimiser's coefficients of every step, from the next one on."""
    train, schedule = training.setup.train, training.setup.schedule
    for first in count(training.step, NUM_COEFFICIENTS):
        lrs = [train.lr * schedule.factor(first + i) for i in range(NUM_COEFFICIENTS)]
        yield from training.setup.optimizer.coefficients(lrs, first=first, steps=schedule.steps)


def _interrupted(training: Training, signals: Signals) -> Interrupted:
    """What is said of a training that was stopped after a step."""
    steps = training.setup.schedule.steps
    saved = " and saved" if training.is_saved else ", which could not be saved"
    return Interrupted(
        f"Stopped at step {training.step} of {steps}{saved}; "
        f"{_cure(training.setup.recipe, training.run)}",
        number=signals.caught[0] if signals.caught else signal.SIGTERM,
    )


def _check_saved(training: Training) -> None:
    """Checks that a training that has ended is on the disk.

    Raises:
        RunError: its last checkpoint or lines of its logs could not be written.
    """
    run, logs = training.run, training.logs
    if training.is_saved and not (logs and any(logs.waiting.values())):
        return
    before = "the one before stays" if checkpoint.checkpoints(run) else "and there is no other"
    last = f"the last checkpoint could not be written, {before}"
    raise RunError(
        f"{run}: {'the logs could not be written' if training.is_saved else last}: make room, then "
        f"{_cure(training.setup.recipe, run)}"
    )


@contextmanager
def _stopping(recipe: Recipe, run: Path) -> Iterator[Signals]:
    """Says what became of a training that is stopped at once.

    Raises:
        Interrupted: somebody has stopped it before its first step, or twice.
    """
    with stop_signals() as signals:
        try:
            yield signals
        except BaseException as error:
            # Libraries turn the interrupt into errors of theirs.
            at_once = len(signals.caught) > signals.patient
            if not at_once or isinstance(error, Interrupted):
                raise
            kept = "Stopped before the first step: nothing was saved"
            if checkpoint.checkpoints(run):
                kept = f"Stopped at once, the last checkpoint stays; {_cure(recipe, run)}"
            raise Interrupted(kept, number=signals.caught[-1]) from None


def _cure(recipe: Recipe, run: Path) -> str:
    return f"go on with: ae train {recipe.name} --out {shlex.quote(str(run))} --resume"
