"""The verbs that make and compare run directories: train and runs.

Everything heavy is imported inside the callbacks.
"""

from __future__ import annotations

import json
import shlex
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ae_toolkit.cli.options import (
    FIGURE_ENDINGS,
    device_option,
    json_option,
    need_ending,
    print_json,
    print_table,
    to_json,
)
from ae_toolkit.console import Bar, duration, is_main_process
from ae_toolkit.files import printable

if TYPE_CHECKING:
    from ae_toolkit.recipe import Recipe
    from ae_toolkit.runs.history import Run


@click.command("train")
@click.argument("recipe")
@click.option("--data", help="A data set's name, or a file or folder of your own.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Run directory.  [default: runs/RECIPE]")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Change a setting of the recipe; repeatable.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="The same as --set train.seed=…")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
@click.option("--init-from", metavar="MODEL",
              help="Begin with the weights of a run or bundled model, where they fit.")  # fmt: skip
@click.option("--keep", type=click.IntRange(1), default=2, show_default=True,
              help="How many of the last checkpoints stay, beside the best.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="Say only what came out, and what went wrong.")
@click.option("--track", multiple=True, metavar="NAME",
              help="Tell the numbers to tensorboard or wandb too; repeatable.")  # fmt: skip
@click.option("--callback", "callbacks", multiple=True, metavar="NAME",
              help="Call a registered callback, too; repeatable.")  # fmt: skip
@click.option("--profile", is_flag=True, help="Record some steps in profile.json of --out.")
@click.option("--dry-run", is_flag=True,
              help="Print shapes, sizes and time, and train nothing.")  # fmt: skip
@json_option
@device_option
@click.pass_context
def train(
    ctx: click.Context,
    recipe: str,
    data: str | None,
    out: Path | None,
    settings: tuple[str, ...],
    seed: int | None,
    resume: bool,
    init_from: str | None,
    keep: int,
    quiet: bool,
    track: tuple[str, ...],
    callbacks: tuple[str, ...],
    profile: bool,
    dry_run: bool,
    as_json: bool,
    device: str,
) -> None:
    """Train RECIPE and leave a run directory.

    \b
    Examples:
      ae train mnist-2d
      ae train mnist-vae --data my_pictures/ --set train.epochs=2
      ae train mnist-2d --set encoder.hidden=[256,64] --set train.lr=3e-4 --out runs/small
      ae train mnist-2d --out runs/small --resume
      ae train mnist-vae --data my_pictures/ --init-from mnist-vae
      ae train mnist-2d --dry-run
    """
    began = time.monotonic()
    run = out or Path("runs") / recipe.rpartition(":")[2]
    with Bar(f"Starting to train {recipe}", shown=not (quiet or dry_run)):
        from ae_toolkit.inference import zoo  # PyTorch takes its time
        from ae_toolkit.training.trainer import fit

        chosen = _choose(recipe, run, data=data, settings=settings, seed=seed, resume=resume)
    if dry_run:
        with Bar(f"Measuring {recipe}", shown=not (quiet or as_json)):
            text = _estimate(chosen, run, resume=resume, track=track, device=device, json=as_json)
        click.echo(text)
        return
    fit(
        chosen,
        run,
        resume=resume,
        device=device,
        keep=keep,
        progress=not quiet,
        track=track,
        profile=profile,
        callbacks=callbacks,
        init_from=None if init_from is None else zoo.resolve(init_from),
    )
    if not is_main_process():
        return  # rank 0 speaks for all
    _report(run, seed=chosen.train.seed, seconds=time.monotonic() - began, as_json=as_json)
    if not (quiet or as_json):
        scripts = ctx.find_root().params["scripts"]
        imports = "".join(f"--import {shlex.quote(str(path))} " for path in scripts)
        click.echo(f"Next: ae {imports}evaluate {shlex.quote(str(run))}", err=True)


def _choose(
    name: str,
    run: Path,
    *,
    data: str | None,
    settings: tuple[str, ...],
    seed: int | None,
    resume: bool,
) -> Recipe:
    """The recipe of that name with a user's settings, or as its run knows it that goes on."""
    from ae_toolkit.data.examples import from_option
    from ae_toolkit.recipe import named, parse_settings
    from ae_toolkit.runs.checkpoint import CONFIG_FILE, load_config

    changes = parse_settings(settings)
    if data is not None:
        changes["data"] = from_option(data).model_dump()
    if seed is not None:
        changes["train.seed"] = seed
    chosen = named(name)
    if resume and (run / CONFIG_FILE).exists():
        # The run knows its own settings; whoever repeats one wrongly is told by `fit`.
        former = load_config(run).recipe
        chosen = former if former.name == chosen.name else chosen
    return chosen.with_(changes).check()


def _estimate(
    recipe: Recipe, run: Path, *, resume: bool, track: tuple[str, ...], device: str, json: bool
) -> str:
    """What a training would take, where it could begin."""
    from ae_toolkit.runs.directory import check_resumable
    from ae_toolkit.training.callbacks.trackers import Trackers
    from ae_toolkit.training.dry_run import estimate, in_words

    check_resumable(run, recipe, resume=resume)
    Trackers(track, run=run, settings={})
    found = estimate(recipe, device=device)
    return to_json(found._asdict()) if json else in_words(found)


def _report(run: Path, *, seed: int, seconds: float, as_json: bool) -> None:
    """Says what came of a training."""
    from ae_toolkit.runs.checkpoint import best, load_config
    from ae_toolkit.training.callbacks.progress import terms_in_words
    from ae_toolkit.training.step import TERM_NAMES

    point = best(run)
    assert point is not None, "a finished run has a checkpoint"
    if as_json:
        print_json({"run": str(run), "best_step": point.step, "validation_loss": point.loss})
        return
    what, metrics = "nothing was held out", load_config(point.folder).metrics
    if metrics:
        what = f"validation loss {terms_in_words(metrics[name] for name in TERM_NAMES)}"
    click.echo(
        f"{run}: {what}, best checkpoint at step {point.step:,}, seed {seed}, in "
        f"{duration(seconds)}"
    )


@click.command("runs")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False),
              help="Draw their losses into this figure, too.")  # fmt: skip
@json_option
def runs(folders: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """List the runs in FOLDERS, runs/ if none is given, or compare several runs.

    \b
    Examples:
      ae runs
      ae runs runs/small runs/large                 what differs, and what came of it
      ae runs runs/small runs/large -o curves.png
    """
    from ae_toolkit.runs.history import differing, find, outcomes, plot_curves

    need_ending(out, FIGURE_ENDINGS)
    found, passed = [], []
    for folder in folders or (Path("runs"),):
        some, others = find(folder)
        found += some
        passed += others
    for sentence in passed:
        click.echo(printable(sentence), err=True)
    if len(found) > 1 and all(run.path in folders for run in found):
        names = [str(run.path) for run in found]
        tables = {"settings": differing(found), "outcomes": outcomes(found)}
        if as_json:
            print_json({"runs": names, **tables})
        else:
            for title, rows in tables.items():
                cells = [[key, *map(_cell, row)] for key, row in rows.items()]
                print_table([[title, *names], *cells] if cells else [[f"the same {title}"]])
    elif as_json:
        print_json([run.summary for run in found])
    else:
        head = ["run", "recipe", "state", "step", "loss", "distortion", "rate", "examples/s"]
        print_table([[*head, "moved"], *(_run_cells(run) for run in found)])
    if out is not None:
        plot_curves(found, out)
        click.echo(f"{out}: {len(found)} runs", err=as_json)


def _run_cells(run: Run) -> list[str]:
    """A run as a row of a table."""
    far = f"{run.step:,}/{run.steps:,}" if run.steps else f"{run.step:,}/?"
    terms = [
        f"{run.best[name]:.2f}" if name in run.best else "-"
        for name in ("loss", "distortion", "rate")
    ]
    speed = f"{run.examples_per_second:,.0f}" if run.examples_per_second else "-"
    moved = datetime.fromtimestamp(run.moved).isoformat(" ", "minutes")
    return [str(run.path), run.recipe, run.state, far, *terms, speed, moved]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else json.dumps(value).strip('"')


RUN_COMMANDS = (train, runs)
