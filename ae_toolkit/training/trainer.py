"""Training: one loop, read downward without jumping.

    from ae_toolkit import fit
    fit(recipe, "runs/mine")        # or: ae train RECIPE --out runs/mine

The order of the data and the noise of every step follow from the seed and the step's number, and a
checkpoint holds the rest, so a run that was killed at any instant resumes bit for bit on the same
machine. Several ranks, started by `torchrun`, do the same work as one.
"""

from __future__ import annotations

import math
import shlex
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

from ae_toolkit.console import Bar, duration, leads, tell
from ae_toolkit.data.examples import need_finite
from ae_toolkit.device import pick_device
from ae_toolkit.errors import Failure, Interrupted, Misuse
from ae_toolkit.recipe import Recipe
from ae_toolkit.runs import checkpoint, directory
from ae_toolkit.runs.lock import locked
from ae_toolkit.runs.logs import LogName, Logs
from ae_toolkit.training import memory
from ae_toolkit.training.callbacks.collapse import Alarm
from ae_toolkit.training.callbacks.profiler import profiling
from ae_toolkit.training.callbacks.trackers import Trackers
from ae_toolkit.training.compilation import compiling
from ae_toolkit.training.distributed import Ranks, joined, launched, local_rank
from ae_toolkit.training.engine import Engine
from ae_toolkit.training.optimizer import whole_state
from ae_toolkit.training.schedule import Watch
from ae_toolkit.training.setup import Workshop
from ae_toolkit.training.signals import Signals, stop_signals
from ae_toolkit.training.state import TrainState, check_data, fingerprint, newest, restoring
from ae_toolkit.training.trial import compile_seconds, pays
from ae_toolkit.training.trouble import Trouble
from ae_toolkit.training.validation import TERMS, draw, losses_in_words, terms_in_words, validate

REFRESH_SECONDS = 0.5  #: how often the bar moves and the history is read
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
    track: Iterable[str] = (),
    profile: bool = False,
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

    Raises:
        Misuse: the recipe cannot be built, `out` holds another run or one in training, or a
            tracker is missing.
        Failure: the data cannot be read, or the training diverges; checkpoints stay.
        Interrupted: Ctrl-C or a request to terminate, after saving; a second one is at once.
    """
    recipe.check()
    run = Path(out)
    if keep < 1:
        raise Misuse(f"at least 1 checkpoint must be kept, not {keep}")
    where = pick_device(device, local_rank=local_rank() if launched() else None)
    told = tuple(track) if leads() else ()
    trackers = Trackers(told, run=run, settings=recipe.model_dump(mode="json"))
    begun = run.is_dir()
    with (
        _stopping(recipe, run) as signals,
        joined(where) as ranks,
        locked(run) if ranks.leads else nullcontext(),
    ):
        if ranks.leads:
            # What `torchrun` starts anew goes on where it stood.
            resume = resume or (ranks.remembers(str(run)) and (run / checkpoint.CONFIG).exists())
            directory.claim(run, recipe, resume=resume, begun=begun)
            ranks.remember(str(run))
            directory.sweep(run)
        resume = ranks.agree(resume)
        title = f"Reading {recipe.data.name}"
        with closing(trackers), Bar(title, shown=progress) as bar:
            _train(
                recipe,
                run,
                where,
                ranks,
                trackers,
                signals,
                bar,
                resume=resume,
                keep=keep,
                profile=profile,
            )
    return run


@contextmanager
def _stopping(recipe: Recipe, run: Path) -> Iterator[Signals]:
    """Says what became of a training that is stopped at once.

    Raises:
        Interrupted: so it is.
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


def _train(
    recipe: Recipe,
    run: Path,
    where: torch.device,
    ranks: Ranks,
    trackers: Trackers,
    signals: Signals,
    bar: Bar,
    *,
    resume: bool,
    keep: int,
    profile: bool,
) -> None:
    train, engine = recipe.train, Engine.pick(recipe.train, where, num_ranks=ranks.num)
    shop = Workshop(recipe, engine, where, ranks)
    model, learner, schedule = shop.model, shop.learner, shop.schedule
    examples, held_out, every = shop.examples, shop.held_out, schedule.evaluate_every
    data = fingerprint(examples, held_out)

    # Where a former run stood.
    step, watch = 0, Watch()
    log_size, waiting = dict[LogName, int](), dict[LogName, str]()
    history = torch.zeros(every, len(TERMS), device=where)
    decided = train.compile != "auto"
    if resume:
        if former := Engine.written(run):
            engine, decided = engine.as_before(former, train), engine.device == former.device
        if folder := ranks.agree(newest(run) if ranks.leads else None):
            with restoring(run):
                state = TrainState.load(folder)
                check_data(state.data, data)
                former_train = checkpoint.load_config(folder).recipe.train
                state.need_fit(schedule.lasting(former_train.epochs), like=history)
                schedule.check_length(former_train, train, state.step)
                learner.load_state_dict(dict(state.learner), step=state.step)
                step, watch = state.step, Watch(*state.watch)
                history[: len(state.history)] = state.history.to(where)
                log_size, waiting = state.log_size, state.log_waiting

    # Everything is tried before the first step: which noise is asked for, and what is faster.
    shop.engine = engine
    bar.say("Trying a first step")
    shop.rehearse(step)
    enough = partial(memory.enough_for, schedule.batch_size, accumulate=train.accumulate)
    with enough():
        stepper = shop.stepper(engine.compiled) if decided else pays(shop, step, bar)
    engine = engine._replace(compiled=stepper.compiled)
    signals.patient, stopped = True, signals.caught  # from here on, a step is finished and saved
    if ranks.leads:
        checkpoint.write_text(run / checkpoint.CONFIG, checkpoint.config_json(recipe))
        engine.write(run)
        logs = Logs(run, log_size, waiting)
    trouble = Trouble()
    if step == schedule.steps or watch.over(train.patience):
        more = f"epochs={2 * train.epochs:g}" if step == schedule.steps else "patience=0"
        tell(f"{run} is finished: to go on, add --set train.{more}")
    elif stepper.compiled and decided:
        bar.say(f"Compiling, which takes about {duration(compile_seconds(learner))}")

    def save(metrics: Mapping[str, float] | None = None) -> bool:
        """Whether all went well; what cannot be written must not end a training."""
        weights = whole_state(learner.settle(), keep=ranks.leads)  # of all ranks
        learned = learner.state_dict(keep=ranks.leads)
        if not ranks.leads:
            return True
        with trouble.survived("logs"):
            logs.flush()
        state = {
            "step": step,
            "watch": tuple(watch),
            **logs.state(),
            "data": data.model_dump(),
            "learner": learned,
            "history": history[: step % every].clone(),
        }
        folder, saved = run / "checkpoints" / f"step_{step:07d}", False
        with trouble.survived("checkpoints"):
            config = checkpoint.config_json(recipe, metrics=metrics)
            checkpoint.save(folder, weights, config, state=state)
            saved = True
            directory.tidy(run, keep=keep)
        return saved

    paces, known = torch.empty(0), range(0)
    checked, logged, spent, pause = step, step, 0.0, 1
    safe, alarm = True, Alarm(shop.objective)
    began = shown = saved_at = time.perf_counter()
    drawn_at = -math.inf

    with (
        enough(),
        compiling() if stepper.compiled else nullcontext(),
        shop.batches,
        profiling(run if profile and ranks.leads else None, where) as profiled,
    ):
        bar.tell(
            f"{recipe.name}: {model.num_parameters():,} parameters, {len(examples):,} examples, "
            f"{train.epochs:g} epochs, {schedule.steps:,} steps, {engine}"
        )
        while step < schedule.steps and not watch.over(train.patience):
            if step not in known:
                known = range(step, step + PACES)
                paces = shop.paces(step, PACES)
            row = shop.take(stepper, step, paces[step - known[0]])
            history[step % every] = row
            step += 1
            profiled()

            # Once in a while: look at the history, which is the only wait for the device.
            due = step % every == 0 or step == schedule.steps
            look = bool(stopped) or time.perf_counter() - shown > REFRESH_SECONDS
            # Several ranks, whose clocks differ, count steps instead.
            if not (due or (step - checked >= pause if ranks.num > 1 else look)):
                continue
            past = slice(checked % every, (step - 1) % every + 1)
            history[past] = ranks.mean(history[past])
            rows = history[past].tolist()
            _need_finite(rows, checked, run, shop)
            now = time.perf_counter()
            stop, overdue = ranks.any(bool(stopped), ranks.leads and now - saved_at > SAVE_SECONDS)
            pause = ranks.agree(max(int(REFRESH_SECONDS * (step - checked) / (now - shown)), 1))
            spent, speed = spent + now - shown, (step - checked) * schedule.per_step / (now - shown)
            title = f"epoch {int((step - 1) / schedule.per_epoch) + 1}/{train.epochs:g}"
            text = f"loss {terms_in_words(rows[-1])}, {speed:,.0f} examples/s"
            bar.update(step, total=schedule.steps, title=title, text=text)
            checked, shown = step, now

            # Once in a while: validate, draw, log.
            metrics = None
            if due:
                learned = dict(zip(TERMS, history[: past.stop].mean(0).tolist(), strict=True))
                epoch, seen = step / schedule.per_epoch, None
                if len(held_out):
                    averaged = learner.settle()
                    seen = validate(
                        averaged, shop.modality, shop.objective, held_out, train.seed, ranks
                    )
                    metrics = seen.terms
                    if not math.isfinite(metrics["loss"]):
                        need_finite(held_out, shop.modality)
                    watch = watch.after(metrics["loss"])
                figure = run / "figures" / f"step_{step:07d}.png"
                if ranks.agree(now - drawn_at > FIGURE_SECONDS or step == schedule.steps):
                    drawn_at = now
                    if whole := shop.shown():
                        with trouble.survived("figures"):
                            some = held_out if len(held_out) else examples
                            draw(whole, shop.modality, some, figure)
                            trackers.figure(step, figure)
                if ranks.leads:
                    validated, usual = seen.row if seen else None, (step - logged) / spent
                    speed = usual * schedule.per_step  # since the last time, saving not counted
                    with trouble.survived("logs"):
                        logs.write(step, epoch, learned, validated, now - began, speed)
                    pace = {"examples_per_second": speed}
                    trackers.log(step, train=learned, validation=validated or {}, pace=pace)
                bar.tell(f"epoch {epoch:.4g}/{train.epochs:g}: {losses_in_words(learned, metrics)}")
                logged, spent = step, 0.0
                if seen:
                    lost, far = seen.terms["distortion"], step / schedule.steps
                    if warning := alarm.look(seen.rates, distortion=lost, progress=far):
                        tell(warning)

            # Once in a while: save; and stop, if somebody has asked for it.
            if due or overdue or stop:
                safe = save(metrics)
                saved_at = shown = time.perf_counter()
            if stop:
                raise Interrupted(
                    f"Stopped at step {step} of {schedule.steps}"
                    + (" and saved; " if safe else ", which could not be saved; ")
                    + _cure(recipe, run),
                    number=stopped[0] if stopped else signal.SIGTERM,
                )
    if not safe or (ranks.leads and any(logs.waiting.values())):
        before = "the one before stays" if checkpoint.checkpoints(run) else "and there is no other"
        last = f"the last checkpoint could not be written, {before}"
        raise Failure(
            f"{run}: {'the logs could not be written' if safe else last}: make room, then "
            f"{_cure(recipe, run)}"
        )


def _need_finite(rows: list[list[float]], first: int, run: Path, shop: Workshop) -> None:
    """Stops a training at the step, and in the term, in which it diverged.

    Raises:
        Failure: a number of the history is not finite; the sentence says whether the data is to
            blame.
    """
    for number, row in enumerate(rows, start=first + 1):
        # The loss is the sum of the others: a part of it is the better clue.
        for name, value in sorted(zip(TERMS, row, strict=True), key=lambda t: t[0] == "loss"):
            if not math.isfinite(value):
                need_finite(shop.examples, shop.modality)
                point = checkpoint.best(run)
                kept = f"the last good checkpoint is {point.folder}" if point else "none was saved"
                raise Failure(
                    f"the training diverged at step {number}: the {name} is {value}; {kept}; try a "
                    f"smaller train.lr, or train.clip=1"
                )
