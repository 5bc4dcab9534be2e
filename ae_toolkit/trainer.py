"""Training: one loop, read downward without jumping.

    from ae_toolkit import fit
    fit(recipe, "runs/mine")        # or: ae train RECIPE --out runs/mine

The order of the data and the noise of every step follow from the seed and the step's number, and a
checkpoint holds the rest, so a run that was killed at any instant resumes bit for bit on the same
machine. Several ranks, started by `torchrun`, do the same work as one.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ae_toolkit import checkpoint, rundir
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.batches import Batches
from ae_toolkit.contracts import Batch, Step, Terms
from ae_toolkit.data import hold_out, load_data
from ae_toolkit.device import Engine, pick_device
from ae_toolkit.errors import Failure, Fault, Interrupted, said
from ae_toolkit.learner import Learner, whole_state
from ae_toolkit.modality import Modality
from ae_toolkit.noise import Source, Tape
from ae_toolkit.ranks import Ranks, check_batch, joined, launched, local_rank
from ae_toolkit.recipe import Recipe
from ae_toolkit.registry import culprit
from ae_toolkit.schedule import Schedule, Watch
from ae_toolkit.stepper import Stepper, compiling, pays
from ae_toolkit.validation import TERMS, draw, means, validate

REFRESH_SECONDS = 0.5  #: how often the bar moves and the history is read
REFRESH_STEPS = 20  #: the same among several ranks, whose clocks differ
FIGURE_SECONDS = 30.0  #: how often at most a figure is drawn
SAVE_SECONDS = 300.0  #: how often at least a checkpoint is written
PACES = 1000  #: steps whose learning rates are worked out at once


def fit(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    device: str = "auto",
    keep: int = 2,
    progress: bool = True,
) -> Path:
    """Trains a recipe and returns the run directory.

    Args:
        recipe: what to build, and how to train it.
        out: the run directory; it must not hold a run, unless `resume`. All ranks must see it.
        resume: go on from the last checkpoint in `out`.
        device: auto, cpu, cuda, cuda:1 … or mps.
        keep: how many of the last checkpoints stay, beside the best.
        progress: show a bar.

    Raises:
        Misuse: the recipe cannot be built, or `out` holds another run, or one in training.
        Failure: the data cannot be read, or the training diverges; checkpoints stay.
        Interrupted: Ctrl-C or a request to terminate, after saving.
    """
    recipe.check()
    run = Path(out)
    where = pick_device(device, local_rank=local_rank() if launched() else None)
    with joined(where) as ranks, rundir.locked(run) if ranks.leads else nullcontext():
        if ranks.leads:
            # What `torchrun` has started anew goes on where it stood.
            again = resume or (ranks.restarts > 0 and (run / checkpoint.CONFIG).exists())
            rundir.claim(run, recipe, resume=again)
            checkpoint.write_text(run / checkpoint.CONFIG, checkpoint.config_json(recipe))
        resume = ranks.agree(ranks.leads and again)
        _train(recipe, run, where, ranks, resume=resume, keep=keep, progress=progress)
    return run


def _train(
    recipe: Recipe,
    run: Path,
    where: torch.device,
    ranks: Ranks,
    *,
    resume: bool,
    keep: int,
    progress: bool,
) -> None:
    train = recipe.train
    engine = Engine.pick(train, where, num_ranks=ranks.num)

    # The data: split by group, and dealt out in batches.
    modality: Modality = recipe.make("modality")
    examples, held_out = hold_out(
        load_data(recipe, modality, "train").to(where), train.validation, seed=train.seed
    )
    check_batch(train, ranks.num)
    schedule = Schedule.of(train, len(examples), num_ranks=ranks.num)
    if schedule.batch_size < train.batch_size:
        rundir.tell(
            f"train.batch_size is {train.batch_size}, but there are {len(examples)} examples: each "
            f"batch holds {schedule.batch_size}"
        )
    batches = Batches.of(
        examples,
        batch_size=schedule.batch_size,
        batches=schedule.batches,
        seed=train.seed,
        device=where,
        rank=ranks.rank,
        num_ranks=ranks.num,
    )

    # The model, its averaged twin, and what moves them.
    torch.manual_seed(train.seed)
    model = Autoencoder(recipe, modality=modality).to(where)
    if train.parallel == "ddp":
        model = model.to(memory_format=torch.channels_last)
    objective = recipe.make("objective")
    twin = copy.deepcopy(model).eval()
    called = ranks.spread(model, train)
    if train.parallel == "fsdp":
        ranks.spread(twin, train)
    learner = Learner(model, twin, train)

    # Where a former run stood.
    step, watch, log_size = 0, Watch(), rundir.NO_LOGS
    history = torch.zeros(schedule.evaluate_every, len(TERMS), device=where)
    decided = train.compile != "auto"
    if resume:
        if former := Engine.noted(run):
            engine, decided = engine.as_before(former), engine.device == former.device
        if state := rundir.last_state(run):
            step, watch, log_size = state["step"], Watch(*state["watch"]), state["log_size"]
            learner.load_state_dict(state["learner"], step=step)
            history[: len(state["history"])] = state["history"].to(where)

    # The loss of one batch, and how it is made up.
    def terms_of(net: torch.nn.Module, batch: Batch, now: Step) -> Terms:
        y = modality.augment(modality.prepare(batch.y), now)
        with engine.autocast():
            return net(batch._replace(y=y), now, num_samples=objective.num_samples)

    def loss_of(batch: Batch, now: Step) -> tuple[Tensor, Tensor]:
        terms = terms_of(called, batch, now)
        loss = objective(terms, now).mean()
        return loss, torch.stack([loss.detach(), *means(terms)])

    def make(compiled: bool) -> Stepper:
        return Stepper(
            loss_of,
            called,
            learner,
            accumulate=train.accumulate,
            device=where,
            compiled=compiled,
        )

    # Everything is tried before the first step: which noise is asked for, and what is faster.
    model.train()
    first = batches.at(step * train.accumulate)
    with _first_step(recipe):
        tape = Tape(
            Source(train.seed, "train", where),
            lambda now: terms_of(model, first, now),
            rank=ranks.rank,
            num_ranks=ranks.num,
        )

    def take(stepper: Stepper, step: int, pace: Tensor) -> Tensor:
        row = torch.zeros(len(TERMS), device=where)
        micros = range(step * train.accumulate, (step + 1) * train.accumulate)
        for micro in micros:
            row += stepper(batches.at(micro), tape.draw(micro), pace, last=micro == micros[-1])
        return row / train.accumulate

    def paces(first: int, num: int) -> Tensor:
        rates = [train.lr * schedule.factor(i) for i in range(first, first + num)]
        return learner.paces(rates, first=first, steps=schedule.steps)

    if decided:
        stepper = make(engine.compiled)
    else:
        pace, start = paces(step, 1)[0], step
        stepper = pays(
            make,
            lambda stepper, number: take(stepper, start + number, pace),
            learner,
            steps=schedule.steps - step,
            ranks=ranks,
            device=where,
        )
        engine = engine._replace(compiled=stepper.compiled)
    if ranks.leads:
        engine.note(run)
        logs = rundir.Logs(run, log_size)

    def save(metrics: Mapping[str, float] | None = None) -> bool:
        """Whether all went well; what cannot be written must not end a training."""
        weights, learned = whole_state(learner.settle()), learner.state_dict()  # of all ranks
        if not ranks.leads:
            return True
        state = {
            "step": step,
            "watch": tuple(watch),
            "log_size": logs.size(),
            "learner": learned,
            "history": history[: step % schedule.evaluate_every].clone(),
        }
        folder = run / "checkpoints" / f"step_{step:07d}"
        try:
            config = checkpoint.config_json(recipe, metrics=metrics)
            checkpoint.save(folder, weights, config, state=state)
            rundir.tidy(run, keep=keep)
        except (Failure, OSError) as error:
            rundir.tell(f"{error}; the training goes on and will try again", bar=bar)
            return False
        return True

    bar = tqdm(
        total=schedule.steps,
        initial=step,
        disable=None if progress and ranks.leads else True,
        bar_format="{percentage:3.0f}% |{bar:20}| {desc}{remaining} left",
    )
    table, known = torch.empty(0), range(0)
    checked, safe = step, True
    began = shown = saved_at = time.perf_counter()
    drawn_at = -math.inf

    with rundir.stop_signals() as stopped, compiling() if stepper.compiled else nullcontext(), bar:
        rundir.tell(
            f"{recipe.name}: {model.num_parameters():,} parameters, {len(examples):,} examples, "
            f"{schedule.steps:,} steps, {engine}"
        )
        while step < schedule.steps and not watch.over(train.patience):
            if step not in known:
                known = range(step, step + PACES)
                table = paces(step, PACES)
            history[step % schedule.evaluate_every] = take(stepper, step, table[step - known[0]])
            step += 1

            # Once in a while: look at the history, which is the only wait for the device.
            due = step % schedule.evaluate_every == 0 or step == schedule.steps
            now = time.perf_counter()
            look = bool(stopped) or now - shown > REFRESH_SECONDS
            if not (due or (step % REFRESH_STEPS == 0 if ranks.num > 1 else look)):
                continue
            stop, overdue = ranks.any(bool(stopped), ranks.leads and now - saved_at > SAVE_SECONDS)
            past = slice(checked % schedule.evaluate_every, (step - 1) % schedule.evaluate_every + 1)
            history[past] = ranks.mean(history[past])
            rows = history[past].tolist()
            _need_finite(rows, checked, run)
            speed = (step - checked) * schedule.per_step / max(now - shown, 1e-9)
            numbers = f"distortion {rows[-1][1]:.2f}, rate {rows[-1][2]:.2f}"
            bar.set_description_str(f"{numbers}, {speed:,.0f} examples/s, ", refresh=False)
            bar.update(step - bar.n)
            checked, shown = step, now

            # Once in a while: validate, draw, log.
            metrics = None
            if due:
                learned = dict(zip(TERMS, history[: past.stop].mean(0).tolist(), strict=True))
                averaged = learner.settle()
                if len(held_out):
                    metrics = validate(averaged, modality, objective, held_out, train.seed, ranks)
                    watch = watch.after(metrics["loss"])
                if ranks.agree(now - drawn_at > FIGURE_SECONDS or step == schedule.steps):
                    drawn_at = now
                    picture = run / "figures" / f"step_{step:07d}.png"
                    some = held_out if len(held_out) else examples
                    if whole := _whole(averaged, recipe, modality, ranks):
                        draw(whole, modality, some, picture)
                epoch = step / schedule.per_epoch
                if ranks.leads:
                    logs.write(step, epoch, learned, metrics, now - began, speed)
                rundir.tell(_line(epoch, learned, metrics), bar=bar)

            # Once in a while: save; and stop, if somebody has asked for it.
            if due or overdue or stop:
                safe, saved_at = save(metrics), time.perf_counter()
                shown = saved_at
            if stop:
                raise Interrupted(
                    f"stopped at step {step} of {schedule.steps} and saved; go on with: "
                    f"ae train {recipe.name} --out {run} --resume"
                )
    if not safe:
        raise Failure(
            f"{run}: the last checkpoint could not be written, the one before stays: make room, "
            f"then go on with: ae train {recipe.name} --out {run} --resume"
        )


def _whole(
    averaged: torch.nn.Module, recipe: Recipe, modality: Modality, ranks: Ranks
) -> Autoencoder | None:
    """The averaged model on rank 0, its shards put together; None on the other ranks."""
    if recipe.train.parallel == "ddp" or ranks.num == 1:
        assert isinstance(averaged, Autoencoder)
        return averaged if ranks.leads else None
    weights = whole_state(averaged)
    if not ranks.leads:
        return None
    model = Autoencoder(recipe, modality=modality)
    model.load_state_dict(weights)
    return model.eval()


@contextmanager
def _first_step(recipe: Recipe) -> Iterator[None]:
    """Says that a stranger's parts do not fit, where the error comes from what they gave to ours.

    Raises:
        Fault: so it is.
    """
    try:
        yield
    except Exception as error:
        strangers = recipe.strangers()
        if isinstance(error, Failure) or not strangers or culprit(error):
            raise
        raise Fault(
            f"recipe {recipe.name!r}, with parts of {', '.join(strangers)}, fails at its first "
            f"step: {said(error)}"
        ) from error


def _line(epoch: float, learned: Mapping[str, float], metrics: Mapping[str, float] | None) -> str:
    def terms(row: Mapping[str, float]) -> str:
        return f"{row['loss']:.2f} (distortion {row['distortion']:.2f}, rate {row['rate']:.2f})"

    line = f"epoch {epoch:.4g}: train {terms(learned)}"
    return f"{line}, validation {terms(metrics)}" if metrics else line


def _need_finite(rows: list[list[float]], first: int, run: Path) -> None:
    """Stops a training at the step, and in the term, in which it diverged.

    Raises:
        Failure: a number of the history is not finite.
    """
    for number, row in enumerate(rows, start=first + 1):
        # The loss is the sum of the others: a part of it is the better clue.
        for name, value in sorted(zip(TERMS, row, strict=True), key=lambda t: t[0] == "loss"):
            if not math.isfinite(value):
                point = checkpoint.best(run)
                kept = f"the last good checkpoint is {point.folder}" if point else "none was saved"
                raise Failure(
                    f"the training diverged at step {number}: the {name} is {value}; {kept}; try a "
                    f"smaller train.lr, or train.clip=1"
                )
