"""Training: one loop, read downward without jumping.

    from ae_toolkit import fit
    fit(recipe, "runs/mine")        # or: ae train RECIPE --out runs/mine

The order of the data and the noise of every step follow from the seed and the step's number, and a
checkpoint holds the rest, so a run that was killed at any instant resumes bit for bit on the same
machine.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ae_toolkit import checkpoint
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import Batch, Terms
from ae_toolkit.data import Examples, hold_out, load_data
from ae_toolkit.device import Engine, pick_device
from ae_toolkit.errors import Failure, Interrupted, Misuse
from ae_toolkit.modality import Modality
from ae_toolkit.noise import Source, Tape, replay
from ae_toolkit.recipe import Recipe, Train

TERMS = ("loss", "distortion", "rate", "penalty")  #: a row of the history, nats or the like
CHUNK = 1000  #: examples per validation batch
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
    _claim(run, recipe, resume=resume)

    # The data: on the device, split by group.
    modality: Modality = recipe.make("modality")
    examples, held_out = hold_out(
        load_data(recipe, modality, "train").to(where), train.validation, seed=train.seed
    )
    schedule = Schedule.of(train, len(examples))

    # The model, its averaged twin, and what moves it.
    torch.manual_seed(train.seed)
    model = Autoencoder(recipe, modality=modality).to(where, memory_format=torch.channels_last)
    objective = recipe.make("objective")
    weights = list(model.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimiser = _adam(weights, train)

    # Where a former run stood.
    engine = Engine.pick(train, where)
    history = torch.zeros(schedule.evaluate_every, len(TERMS), device=where)
    step, watch, log_size = 0, Watch(), {"metrics.jsonl": 0, "timings.jsonl": 0}
    if resume and (state := _last_state(run)):
        step, watch, log_size = state["step"], Watch(*state["watch"]), state["log_size"]
        engine = _same_engine(Engine(*state["engine"]), engine)
        model.load_state_dict(state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        for mine, saved in zip(average, state["average"], strict=True):
            mine.copy_(saved)
        history[: len(state["history"])] = state["history"].to(where)
    logs = Logs(run, log_size)
    checkpoint.write_text(run / checkpoint.CONFIG, checkpoint.config_json(recipe))

    # The loss of one batch, and how it was made up.
    def loss_of(batch: Batch, moment: Tensor, drawn: list[Tensor]) -> tuple[Tensor, Tensor]:
        now = replay(moment, drawn)
        y = modality.augment(modality.prepare(batch.y), now)
        with engine.autocast():
            terms = model(batch._replace(y=y), now, num_samples=objective.num_samples)
        loss = objective(terms, now).mean()
        return loss, torch.stack([loss.detach(), *_means(terms)])

    order, noise = Source(train.seed, "order", where), Source(train.seed, "train", where)
    first = examples.at(torch.arange(schedule.batch_size, device=examples.y.device))
    with engine.autocast():
        tape = Tape(
            noise,
            lambda now: model(
                first._replace(y=modality.augment(modality.prepare(first.y), now)),
                now,
                num_samples=objective.num_samples,
            ),
        )
    dispatch = torch.compile(loss_of, dynamic=False) if engine.compiled else loss_of

    def save(metrics: Mapping[str, float] | None = None) -> Path:
        folder = run / "checkpoints" / f"step_{step:07d}"
        state = {
            "step": step,
            "watch": tuple(watch),
            "log_size": logs.size(),
            "engine": tuple(engine),
            "weights": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": [twin.detach() for twin in average],
            "history": history[: step % schedule.evaluate_every].clone(),
        }
        with averaged(weights, average):
            checkpoint.save(
                folder,
                model.state_dict(),
                checkpoint.config_json(recipe, metrics=metrics),
                state=state,
            )
        _keep_best_and_last(run)
        return folder

    bar = tqdm(
        total=schedule.steps,
        initial=step,
        desc=recipe.name,
        disable=None if progress else True,
        bar_format="{desc} {percentage:3.0f}% |{bar:20}| {postfix} {remaining} left",
    )
    model.train()
    checked, counted, shown, drawn_at = step, step, time.perf_counter(), -math.inf
    began = shown
    permutation, epoch = torch.empty(0), -1

    with stop_signals() as stopped, bar:
        while step < schedule.steps and not watch.over(train.patience):
            for group in optimiser.param_groups:
                group["lr"] = train.lr * schedule.factor(step)
            moment = torch.tensor(step / schedule.steps, device=where)
            row = history[step % schedule.evaluate_every].zero_()
            for micro in range(step * train.accumulate, (step + 1) * train.accumulate):
                if micro // schedule.batches != epoch:
                    epoch = micro // schedule.batches
                    permutation = order.permutation(len(examples), epoch).to(examples.y.device)
                at = micro % schedule.batches * schedule.batch_size
                batch = examples.at(permutation[at : at + schedule.batch_size])
                loss, terms = dispatch(_to(batch, where), moment, tape.draw(micro))
                (loss / train.accumulate).backward()
                row += terms / train.accumulate
            if train.clip:
                nn.utils.clip_grad_norm_(weights, train.clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            decay = min(train.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1 - decay)
            step += 1

            # Once in a while: look at the history, which is the only wait for the device.
            due = step % schedule.evaluate_every == 0 or step == schedule.steps
            now = time.perf_counter()
            if not (due or stopped or now - shown > REFRESH_SECONDS):
                continue
            rows = history[(checked % schedule.evaluate_every) :][: step - checked].tolist()
            _need_finite(rows, checked, run)
            speed = (step - counted) * schedule.per_step / max(now - shown, 1e-9)
            bar.set_postfix_str(
                f"distortion {rows[-1][1]:.2f}  rate {rows[-1][2]:.2f}  {speed:,.0f} examples/s",
                refresh=False,
            )
            bar.update(step - bar.n)
            checked, counted, shown = step, step, now

            # Once in a while: validate, log, save, draw.
            if due:
                past = history[: (step - 1) % schedule.evaluate_every + 1].mean(0).tolist()
                mine = {"step": step, "epoch": round(step / schedule.per_epoch, 4)}
                logs.metrics(mine | {"split": "train"} | dict(zip(TERMS, past, strict=True)))
                metrics: dict[str, float] | None = None
                line = f"epoch {mine['epoch']:g}: train {_sum(dict(zip(TERMS, past, strict=True)))}"
                with averaged(weights, average):
                    if len(held_out):
                        metrics = validate(model, modality, objective, held_out, train.seed, where)
                        logs.metrics(mine | {"split": "validation"} | metrics)
                        watch = watch.after(metrics["loss"])
                        line += f", validation {_sum(metrics)}"
                    if now - drawn_at > FIGURE_SECONDS or step == schedule.steps:
                        drawn_at = time.perf_counter()
                        some = held_out if len(held_out) else examples
                        draw(model, modality, some, run / "figures" / f"step_{step:07d}.png")
                logs.timings(
                    mine | {"seconds": round(now - began, 3), "examples_per_second": round(speed)}
                )
                save(metrics)
                (bar.write if not bar.disable else _print)(line)
                shown = time.perf_counter()
            if stopped:
                folder = run / "checkpoints" / f"step_{step:07d}"
                if not folder.exists():
                    save()
                raise Interrupted(
                    f"stopped at step {step} of {schedule.steps}, saved in {folder}; go on with: "
                    f"ae train {recipe.name} --out {run} --resume"
                )
    return run


class Schedule(NamedTuple):
    """How many steps of how many examples, and how far each may go.

    Attributes:
        steps: of the optimiser, in all.
        batches: per epoch; what does not fill a batch waits for the next epoch's shuffle.
        batch_size: examples per batch, never more than there are.
        per_step: examples per optimiser step.
        per_epoch: optimiser steps per epoch.
        evaluate_every: steps between validations.
    """

    steps: int
    batches: int
    batch_size: int
    per_step: int
    per_epoch: float
    evaluate_every: int
    shape: str
    warmup: float

    @classmethod
    def of(cls, train: Train, num_examples: int) -> Schedule:
        batch_size = min(train.batch_size, num_examples)
        batches = num_examples // batch_size
        per_epoch = batches / train.accumulate
        return cls(
            steps=max(round(train.epochs * per_epoch), 1),
            batches=batches,
            batch_size=batch_size,
            per_step=batch_size * train.accumulate,
            per_epoch=per_epoch,
            evaluate_every=max(round(train.evaluate_every * per_epoch), 1),
            shape=train.schedule,
            warmup=train.warmup,
        )

    def factor(self, step: int) -> float:
        """The learning rate at a step, as a share of its peak.

        `cosine` rises linearly and falls to 0; `one-cycle` (Smith 2018) rises and falls along
        cosines, with a warm-up of 0.3 in the paper; `constant` only rises.
        """
        warm = self.warmup * self.steps
        if step < warm:
            rise = (step + 1) / (warm + 1)
            return 0.5 - 0.5 * math.cos(math.pi * rise) if self.shape == "one-cycle" else rise
        if self.shape == "constant":
            return 1.0
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(self.steps - warm, 1))


class Watch(NamedTuple):
    """The best validation so far, and how many have passed without a better one."""

    best: float = math.inf
    stale: int = 0

    def after(self, loss: float) -> Watch:
        return Watch(loss, 0) if loss < self.best else Watch(self.best, self.stale + 1)

    def over(self, patience: int) -> bool:
        return bool(patience) and self.stale >= patience


class Logs:
    """`metrics.jsonl`, which repeats exactly, and `timings.jsonl`, which does not.

    Args:
        run: the run directory.
        size: bytes that a resumed checkpoint knows of; whatever follows is cut off.
    """

    def __init__(self, run: Path, size: Mapping[str, int]):
        self.paths = {name: run / name for name in size}
        for name, path in self.paths.items():
            with path.open("ab") as file:
                file.truncate(min(size[name], path.stat().st_size))

    def size(self) -> dict[str, int]:
        return {name: path.stat().st_size for name, path in self.paths.items()}

    def metrics(self, row: Mapping[str, Any]) -> None:
        self._append("metrics.jsonl", row)

    def timings(self, row: Mapping[str, Any]) -> None:
        self._append("timings.jsonl", row)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with self.paths[name].open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@torch.no_grad()
def validate(
    model: Autoencoder,
    modality: Modality,
    objective: Any,
    examples: Examples,
    seed: int,
    device: torch.device,
) -> dict[str, float]:
    """The mean terms over held-out examples, uncompiled and in fp32, with noise of their own.

    The loss is the one of the end of the training, so that a warm-up favours no early checkpoint.
    """
    model.eval()
    source, totals = Source(seed, "validate", device), torch.zeros(len(TERMS), dtype=torch.float64)
    for start in range(0, len(examples), CHUNK):
        index = torch.arange(start, min(start + CHUNK, len(examples)), device=examples.y.device)
        batch = _to(examples.at(index), device)
        now = source.step(start)
        terms = model(
            batch._replace(y=modality.prepare(batch.y)), now, num_samples=objective.num_samples
        )
        row = torch.stack([objective(terms, now).mean(), *_means(terms)])
        totals += len(index) * row.double().cpu()
    model.train()
    return dict(zip(TERMS, (totals / len(examples)).tolist(), strict=True))


@torch.no_grad()
def draw(model: Autoencoder, modality: Modality, examples: Examples, path: Path) -> None:
    """Writes a figure of originals, reconstructions and samples; a failure costs only the figure."""
    model.eval()
    device = next(model.parameters()).device
    num = min(10, len(examples))
    batch = _to(examples.at(torch.arange(num, device=examples.y.device)), device)
    y, now = modality.prepare(batch.y), Source(0, "figure", device).step(0)
    c = model.embed(batch.labels, like=y)
    x, target = model.corruption(y, y, batch.mask, now)
    new = model.bottleneck.prior.sample(num, c, temperature=1.0, step=now)
    tensors = {
        "original": target,
        "reconstruction": model.decode(model.encode(x, c, batch.mask), c, now, mask=batch.mask),
        "sample": model.decode(new, c, now),
    }
    model.train()
    try:
        rows = {name: [modality.from_tensor(t) for t in ts.cpu()] for name, ts in tensors.items()}
        with checkpoint.writing(path) as temporary:
            modality.figure(rows, temporary)
    except Exception as error:  # a plugin's drawing must not end a training
        _print(f"{path.name}: no figure, {type(error).__name__}: {error}")


@contextmanager
def averaged(weights: list[nn.Parameter], average: list[Tensor]) -> Iterator[None]:
    """Puts the averaged weights in place for the length of a block."""
    _swap(weights, average)
    try:
        yield
    finally:
        _swap(weights, average)


def _swap(weights: list[nn.Parameter], average: list[Tensor]) -> None:
    for weight, twin in zip(weights, average, strict=True):
        weight.data, twin.data = twin.data, weight.data


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that a step is finished first; a second one is not kept."""
    caught: list[int] = []

    def catch(number: int, frame: object) -> None:
        caught.append(number)
        for each, former in before.items():
            signal.signal(each, former)

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, catch)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield caught
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _claim(run: Path, recipe: Recipe, *, resume: bool) -> None:
    """Makes sure that `run` holds this recipe's run, or none."""
    config = run / checkpoint.CONFIG
    if not resume:
        if config.exists() or (run / "checkpoints").exists():
            raise Misuse(
                f"{run} already holds a run: add --resume to go on, or choose another --out"
            )
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(f"{run}: cannot be written, {error.strerror}") from error
        return
    if not config.exists():
        raise Misuse(f"{run} holds no run to resume")
    former = _leaves(checkpoint.load_config(run).recipe.model_dump())
    mine = _leaves(recipe.model_dump())
    for key in sorted({*former, *mine}):
        if former.get(key) != mine.get(key):
            raise Misuse(
                f"{run} holds another run: its {key} is {former.get(key)!r}, not {mine.get(key)!r}"
            )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = list(value) if isinstance(value, tuple) else value
    return leaves


def _last_state(run: Path) -> dict[str, Any] | None:
    """The state of the newest whole checkpoint; says which broken ones it passed over."""
    broken: Failure | None = None
    for point in reversed(checkpoint.checkpoints(run)):
        try:
            state = checkpoint.load_state(point.folder)
        except Failure as error:
            broken = error
            _print(f"{error}; trying the one before")
            continue
        _print(f"resuming from {point.folder}")
        return state
    if broken:
        raise Failure(f"{run}: no checkpoint can be resumed from, {broken}")
    _print(f"{run} has no checkpoint yet: starting from the beginning")
    return None


def _same_engine(saved: Engine, mine: Engine) -> Engine:
    """The engine to go on with: the saved one, where this machine has it."""
    if saved.device != mine.device:
        _print(f"resuming on {mine.device} what began on {saved.device}: not bit for bit")
        return mine
    if saved.threads != mine.threads:
        torch.set_num_threads(saved.threads)
    return saved


def _keep_best_and_last(run: Path) -> None:
    points = checkpoint.checkpoints(run)
    kept = {points[-1].folder, (checkpoint.best(run) or points[-1]).folder}
    for point in points:
        if point.folder not in kept:
            doomed = point.folder.with_name(f".{point.folder.name}")
            point.folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _need_finite(rows: list[list[float]], first: int, run: Path) -> None:
    for number, row in enumerate(rows, start=first + 1):
        # The loss comes first in a row but is named last: a part of it is the better clue.
        for name, value in [*zip(TERMS, row, strict=True)][1:] + [(TERMS[0], row[0])]:
            if not math.isfinite(value):
                point = checkpoint.best(run)
                kept = (
                    f"the last good checkpoint is {point.folder}" if point else "none was saved yet"
                )
                raise Failure(
                    f"the training diverged at step {number}: the {name} is {value}; {kept}; try a "
                    f"smaller train.lr or train.clip=1"
                )


def _adam(weights: list[nn.Parameter], train: Train) -> torch.optim.Optimizer:
    """AdamW; matrices and filters decay, biases and gains do not."""
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=train.lr, betas=train.betas, fused=True
    )


def _means(terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    return (
        terms.distortion.mean().detach(),
        terms.rate.sum(-1).mean().detach(),
        terms.penalty.mean().detach(),
    )


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        batch.y.to(device, non_blocking=True),
        None if batch.mask is None else batch.mask.to(device, non_blocking=True),
        {name: column.to(device, non_blocking=True) for name, column in batch.labels.items()},
    )


def _sum(row: Mapping[str, float]) -> str:
    return f"{row['loss']:.2f} (distortion {row['distortion']:.2f}, rate {row['rate']:.2f})"


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
