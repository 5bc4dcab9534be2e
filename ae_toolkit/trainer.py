"""Training: one loop, read downward without jumping.

    from ae_toolkit import fit
    fit(recipe, "runs/mine")        # or: ae train RECIPE --out runs/mine

The order of the data and the noise of every step follow from the seed and the step's number, and a
checkpoint holds the rest, so a run that was killed at any instant resumes bit for bit on the same
machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from ae_toolkit.learner import Learner
from ae_toolkit.modality import Modality
from ae_toolkit.noise import Source, Tape, replay, seed_of
from ae_toolkit.recipe import Recipe
from ae_toolkit.registry import culprit
from ae_toolkit.schedule import Schedule, Watch
from ae_toolkit.validation import TERMS, draw, means, validate

REFRESH_SECONDS = 0.5  #: how often the bar moves and the history is read
FIGURE_SECONDS = 30.0  #: how often at most a figure is drawn


def fit(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Trains a recipe and returns the run directory.

    Args:
        recipe: what to build, and how to train it.
        out: the run directory; it must not hold a run, unless `resume`.
        resume: go on from the last checkpoint in `out`.
        device: auto, cpu, cuda, cuda:1 … or mps.
        progress: show a bar.

    Raises:
        Misuse: the recipe cannot be built, or `out` holds another run.
        Failure: the data cannot be read, or the training diverges; checkpoints stay.
        Interrupted: Ctrl-C or a request to terminate, after saving.
    """
    recipe.check()
    train, run, where = recipe.train, Path(out), pick_device(device)
    engine = Engine.pick(train, where)
    rundir.claim(run, recipe, resume=resume)

    # The data: split by group, and on the device where it fits.
    modality: Modality = recipe.make("modality")
    everything = load_data(recipe, modality, "train")
    examples, held_out = hold_out(everything, train.validation, seed=train.seed)
    del everything
    schedule = Schedule.of(train, len(examples))
    batches = Batches.of(
        examples,
        batch_size=schedule.batch_size,
        batches=schedule.batches,
        seed=train.seed,
        device=where,
    )

    # The model, and what moves it.
    torch.manual_seed(train.seed)
    model = Autoencoder(recipe, modality=modality).to(where).to(memory_format=torch.channels_last)
    objective = recipe.make("objective")
    learner = Learner(model, train)

    # Where a former run stood.
    step, watch, log_size = 0, Watch(), rundir.NO_LOGS
    history = torch.zeros(schedule.evaluate_every, len(TERMS), device=where)
    checkpoint.write_text(run / checkpoint.CONFIG, checkpoint.config_json(recipe))
    if resume and (state := rundir.last_state(run)):
        step, watch, log_size = state["step"], Watch(*state["watch"]), state["log_size"]
        engine = engine.as_before(Engine(*state["engine"]))
        learner.load_state_dict(state["learner"])
        history[: len(state["history"])] = state["history"].to(where)
    logs = rundir.Logs(run, log_size)

    # The loss of one batch, and how it is made up.
    def terms_of(batch: Batch, now: Step) -> Terms:
        y = modality.augment(modality.prepare(batch.y), now)
        with engine.autocast():
            return model(batch._replace(y=y), now, num_samples=objective.num_samples)

    def loss_of(batch: Batch, moment: Tensor, drawn: list[Tensor]) -> tuple[Tensor, Tensor]:
        now = replay(moment, drawn)
        terms = terms_of(batch, now)
        loss = objective(terms, now).mean()
        return loss, torch.stack([loss.detach(), *means(terms)])

    noise = Source(train.seed, "train", where)
    first = examples.at(range(schedule.batch_size)).to(where)
    with _first_step(recipe):
        tape = Tape(noise, lambda now: terms_of(first, now))
    dispatch = torch.compile(loss_of, dynamic=False) if engine.compiled else loss_of

    def save(metrics: Mapping[str, float] | None = None) -> Path:
        folder = run / "checkpoints" / f"step_{step:07d}"
        state = {
            "step": step,
            "watch": tuple(watch),
            "log_size": logs.size(),
            "engine": tuple(engine),
            "learner": learner.state_dict(),
            "history": history[: step % schedule.evaluate_every].clone(),
        }
        config = checkpoint.config_json(recipe, metrics=metrics)
        with learner.averaged():
            checkpoint.save(folder, model.state_dict(), config, state=state)
        rundir.keep_best_and_last(run)
        return folder

    bar = tqdm(
        total=schedule.steps,
        initial=step,
        disable=None if progress else True,
        bar_format="{percentage:3.0f}% |{bar:20}| {desc}{remaining} left",
    )
    model.train()
    checked, saved = step, step
    began = shown = time.perf_counter()
    drawn_at = -math.inf

    with rundir.stop_signals() as stopped, bar, batches:
        rundir.tell(
            f"{recipe.name}: {model.num_parameters():,} parameters, {len(examples):,} examples, "
            f"{schedule.steps:,} steps, {engine}"
        )
        while step < schedule.steps and not watch.over(train.patience):
            moment = torch.tensor(step / schedule.steps, device=where)
            row = history[step % schedule.evaluate_every].zero_()
            for micro in range(step * train.accumulate, (step + 1) * train.accumulate):
                batch = batches.at(micro)
                torch.manual_seed(seed_of(train.seed, "global", micro))  # dropout and its like
                loss, terms = dispatch(batch, moment, tape.draw(micro))
                torch.autograd.backward(loss / train.accumulate)
                row += terms / train.accumulate
            learner.update(step=step, lr=train.lr * schedule.factor(step))
            step += 1

            # Once in a while: look at the history, which is the only wait for the device.
            due = step % schedule.evaluate_every == 0 or step == schedule.steps
            now = time.perf_counter()
            if not (due or stopped or now - shown > REFRESH_SECONDS):
                continue
            rows = history[checked % schedule.evaluate_every :][: step - checked].tolist()
            _need_finite(rows, checked, run)
            speed = (step - checked) * schedule.per_step / max(now - shown, 1e-9)
            numbers = f"distortion {rows[-1][1]:.2f}, rate {rows[-1][2]:.2f}"
            bar.set_description_str(f"{numbers}, {speed:,.0f} examples/s, ", refresh=False)
            bar.update(step - bar.n)
            checked, shown = step, now

            # Once in a while: validate, draw, log, save.
            if due:
                past = history[: (step - 1) % schedule.evaluate_every + 1].mean(0).tolist()
                learned = dict(zip(TERMS, past, strict=True))
                metrics = None
                with learner.averaged():
                    if len(held_out):
                        metrics = validate(model, modality, objective, held_out, train.seed)
                        watch = watch.after(metrics["loss"])
                    if now - drawn_at > FIGURE_SECONDS or step == schedule.steps:
                        drawn_at = now
                        some = held_out if len(held_out) else examples
                        draw(model, modality, some, run / "figures" / f"step_{step:07d}.png")
                logs.write(step, step / schedule.per_epoch, learned, metrics, now - began, speed)
                save(metrics)
                saved = step
                line = _line(step / schedule.per_epoch, learned, metrics)
                rundir.tell(line, bar=bar)
                shown = time.perf_counter()
            if stopped:
                if saved < step:
                    save()
                raise Interrupted(
                    f"stopped at step {step} of {schedule.steps} and saved; go on with: "
                    f"ae train {recipe.name} --out {run} --resume"
                )
    return run


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
