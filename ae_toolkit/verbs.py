"""The verbs that work on every data type: train, evaluate, reconstruct, sample and their like.

Everything heavy is imported inside the callbacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ae_toolkit.errors import Failure, Misuse
from ae_toolkit.options import (
    FIGURE_ENDINGS,
    FiniteRange,
    device_option,
    json_option,
    need_ending,
    parse_labels,
    print_json,
    print_table,
    seed_option,
)
from ae_toolkit.runs import leaves

if TYPE_CHECKING:
    from torch import Tensor

    from ae_toolkit.model import Model
    from ae_toolkit.runs import Run


@click.command("train")
@click.argument("recipe")
@click.option("--data", help="A data set's name, or a file or folder of your own.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Run directory.  [default: runs/RECIPE]")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Change a setting of the recipe; repeatable.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="The same as --set train.seed=…")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
@click.option("--keep", type=click.IntRange(1), default=2, show_default=True,
              help="How many of the last checkpoints stay, beside the best.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.option("--track", multiple=True, metavar="NAME",
              help="Tell the numbers to tensorboard or wandb too; repeatable.")  # fmt: skip
@click.option("--profile", is_flag=True, help="Record some steps in profile.json of --out.")
@click.option("--dry-run", is_flag=True,
              help="Print shapes, sizes, memory and time, and train nothing.")  # fmt: skip
@json_option
@device_option
def train(
    recipe: str,
    data: str | None,
    out: Path | None,
    settings: tuple[str, ...],
    seed: int | None,
    resume: bool,
    keep: int,
    quiet: bool,
    track: tuple[str, ...],
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
      ae train mnist-2d --dry-run
    """
    from ae_toolkit.checkpoint import CONFIG, load_config
    from ae_toolkit.recipe import named, parse_settings

    run = out or Path("runs") / recipe.rpartition(":")[2]
    changes = parse_settings(settings)
    if data is not None:
        from ae_toolkit.data import from_option

        changes["data"] = from_option(data).model_dump()
    if seed is not None:
        changes["train.seed"] = seed
    chosen = named(recipe)
    if resume and (run / CONFIG).exists():
        # The run knows its own settings; whoever repeats one wrongly is told by `fit`.
        former = load_config(run).recipe
        chosen = former if former.name == chosen.name else chosen
    chosen = chosen.with_(changes).check()

    if dry_run:
        from ae_toolkit.estimate import estimate, in_words
        from ae_toolkit.rundir import claim
        from ae_toolkit.trackers import Trackers

        claim(run, chosen, resume=resume)
        Trackers(track, run=run, settings={})
        found = estimate(chosen, device=device)
        if as_json:
            print_json(found._asdict())
        else:
            click.echo(in_words(found))
        return

    from ae_toolkit.checkpoint import best
    from ae_toolkit.ranks import leads
    from ae_toolkit.trainer import fit

    fit(
        chosen,
        run,
        resume=resume,
        device=device,
        keep=keep,
        progress=not quiet,
        track=track,
        profile=profile,
    )

    if not leads():
        return  # rank 0 speaks for all
    point = best(run)
    assert point is not None, "a finished run has a checkpoint"
    if as_json:
        print_json({"run": str(run), "best_step": point.step, "validation_loss": point.loss})
    else:
        click.echo(f"{run}: seed {chosen.train.seed}, best checkpoint at step {point.step}")


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
    from ae_toolkit.runs import differing, draw_curves, find, outcomes

    need_ending(out, FIGURE_ENDINGS)
    found, passed = [], []
    for folder in folders or (Path("runs"),):
        some, others = find(folder)
        found += some
        passed += others
    for sentence in passed:
        click.echo(sentence, err=True)
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
        draw_curves(found, out)
        click.echo(f"{out}: {len(found)} runs", err=as_json)


@click.command("evaluate")
@click.argument("model")
@click.option(
    "--data", help="Another data set or path; of a folder, the tenth that training leaves out."
)
@click.option("--nll", "num_samples", type=click.IntRange(0), metavar="K",
              help="Samples per example of the importance-weighted NLL; 0: none.  "
                   "[default: 500 where the likelihood is a density, or what the "
                   "model's card has]")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Measure only the first so many examples.")
@seed_option
@json_option
@device_option
def evaluate_command(
    model: str,
    data: str | None,
    num_samples: int | None,
    limit: int | None,
    seed: int,
    as_json: bool,
    device: str,
) -> None:
    """Measure MODEL on the test split.

    \b
    Example:
      ae evaluate mnist-2d --json
    """
    from ae_toolkit.evaluate import evaluate
    from ae_toolkit.model import load

    loaded = load(model, device=device)
    report = {
        "model": model,
        **evaluate(
            loaded, data=data, num_samples=num_samples, limit=limit, seed=seed, progress=not as_json
        ),
    }
    if as_json:
        print_json(report)
        return
    for name, value in leaves(report):
        click.echo(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")


@click.command("reconstruct")
@click.argument("model")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="Folder for the results, named like the originals.")  # fmt: skip
@device_option
def reconstruct(model: str, files: tuple[Path, ...], out: Path, device: str) -> None:
    """Send FILES through the code of MODEL and back.

    \b
    Example:
      ae reconstruct mnist-2d three.png seven.png -o back/
    """
    loaded = _load(model, device)
    names, items = _read(loaded, files)
    _write_each(loaded, loaded.reconstruct(items), names, out)


@click.command("sample")
@click.argument("model")
@click.option("-n", "--num", default=16, show_default=True, type=click.IntRange(1),
              help="How many.")  # fmt: skip
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="Folder for the results.")  # fmt: skip
@click.option("--temperature", default=1.0, show_default=True, type=FiniteRange(0),
              help="Spread of the codes; less is safer and duller.")  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="NAME=NUMBER", help="A condition.")
@seed_option
@device_option
def sample(
    model: str,
    num: int,
    out: Path,
    temperature: float,
    labels: tuple[str, ...],
    seed: int,
    device: str,
) -> None:
    """Make new items from the prior of MODEL.

    \b
    Example:
      ae sample mnist-vae -n 16 -o new/ --seed 1
    """
    loaded = _load(model, device)
    items = loaded.sample(num, parse_labels(labels), seed=seed, temperature=temperature)
    _write_each(loaded, items, [f"{i:04}" for i in range(num)], out)
    click.echo(f"seed {seed}")


@click.command("interpolate")
@click.argument("model")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="One file with all the steps.")  # fmt: skip
@click.option("--steps", default=9, show_default=True, type=click.IntRange(2, 1000),
              help="Items in all, both ends included.")  # fmt: skip
@click.option("--path", default="slerp", show_default=True, type=click.Choice(["slerp", "lerp"]),
              help="Along the great arc or the straight line.")  # fmt: skip
@device_option
def interpolate(
    model: str, a: Path, b: Path, out: Path, steps: int, path: str, device: str
) -> None:
    """Walk from A to B through the codes of MODEL.

    \b
    Example:
      ae interpolate mnist-vae three.png eight.png -o walk.png
    """
    loaded = _load(model, device)
    _, items = _read(loaded, [a, b], first_only=True)
    walk = loaded.interpolate(*items, steps=steps, path=path)
    _write(loaded, walk, out)
    click.echo(f"{out}: {steps} steps from {a} to {b}")


@click.command("encode")
@click.argument("model")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="A .npz file with arrays 'z' (N, D), 'names', and the labels that 'z' was made "
                   "under.")  # fmt: skip
@device_option
def encode(model: str, files: tuple[Path, ...], out: Path, device: str) -> None:
    """Write the codes of FILES by MODEL.

    \b
    Example:
      ae encode mnist-2d three.png seven.png -o z.npz
    """
    import numpy as np

    from ae_toolkit.checkpoint import writing

    loaded = _load(model, device)
    rows, names = [], []
    columns: dict[str, list[Any]] = {}
    for name, item in zip(*_read(loaded, files), strict=True):
        examples = loaded.examples([item])
        rows.append(loaded.encode_examples(examples).cpu().numpy())
        names += [name if len(examples) == 1 else f"{name}.{i:03}" for i in range(len(examples))]
        for label, column in examples.labels.items():
            columns.setdefault(label, []).append(column.cpu().numpy())
    z = np.concatenate(rows)
    arrays: dict[str, Any] = {f"label.{k}": np.concatenate(v) for k, v in columns.items()}
    with writing(out) as temporary, temporary.open("wb") as file:
        np.savez(file, z=z, names=np.array(names), **arrays)
    click.echo(f"{out}: {z.shape[0]} codes of {z.shape[1]} numbers")


@click.command("decode")
@click.argument("model")
@click.argument("codes", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="Folder for the results.")  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="NAME=NUMBER", help="A condition.")
@device_option
def decode(model: str, codes: Path, out: Path, labels: tuple[str, ...], device: str) -> None:
    """Turn CODES back into items.

    CODES is a .npz with an array 'z', as 'ae encode' writes it, or a .npy. Labels that it holds are
    used unless --label says otherwise.

    \b
    Example:
      ae decode mnist-2d z.npz -o back/
    """
    loaded = _load(model, device)
    z, names, known = _read_codes(codes)
    _write_each(loaded, loaded.decode(z, {**known, **parse_labels(labels)}), names, out)


@click.command("export")
@click.argument("model")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="Folder for config.json and model.safetensors.")  # fmt: skip
@click.option("--dtype", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16"]),
              help="bf16 halves the file.")  # fmt: skip
def export(model: str, out: Path, dtype: str) -> None:
    """Write MODEL without its training state.

    \b
    Example:
      ae export runs/mine -o shared/mine --dtype bf16
    """
    from ae_toolkit.zoo import export as export_model

    size = export_model(model, out, dtype=dtype)
    click.echo(f"{out}: {size / 1e6:.2f} MB")


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


def _load(model: str, device: str) -> Model:
    from ae_toolkit.model import load

    return load(model, device=device)


def _read(
    model: Model, files: Iterable[Path], *, first_only: bool = False
) -> tuple[list[str], list[Any]]:
    """The items of files and folders, each with a name to write it under."""
    from ae_toolkit.corpus import find_files
    from ae_toolkit.modality import read_items

    names, items = [], []
    for path in files:
        if not path.exists():
            raise Misuse(f"{path}: there is no such file")
        for file in find_files(path, model.modality) if path.is_dir() else [path]:
            found = read_items(file, model.modality)
            if not found:
                raise Failure(f"{file}: nothing was found in it")
            found = found[:1] if first_only else found
            for i, item in enumerate(found):
                names.append(file.stem if len(found) == 1 else f"{file.stem}-{i:03}")
                items.append(item)
    return names, items


def _read_codes(path: Path) -> tuple[Tensor, list[str], dict[str, Tensor]]:
    """Codes from a .npz with an array `z`, or a .npy; their names and their labels."""
    import numpy as np
    import torch

    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"z": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        z = torch.from_numpy(np.atleast_2d(arrays["z"])).float()
    except FileNotFoundError:
        raise Misuse(f"{path}: there is no such file") from None
    except KeyError:
        raise Failure(f"{path}: holds no array 'z'") from None
    except Exception as error:  # numpy raises half a dozen kinds for a file that is none of its own
        raise Failure(f"{path}: holds no codes ({error})") from error
    names = [str(n) for n in arrays.get("names", [])]
    labels = {
        name.removeprefix("label."): torch.from_numpy(column)
        for name, column in arrays.items()
        if name.startswith("label.") and column.shape == (len(z),) and column.dtype.kind in "iuf"
    }
    return z, names if len(names) == len(z) else [f"{i:04}" for i in range(len(z))], labels


def _write(model: Model, items: list[Any], path: Path) -> None:
    from ae_toolkit.checkpoint import writing
    from ae_toolkit.modality import describe

    need_ending(path, model.modality.suffixes)
    with writing(path) as temporary:
        model.modality.write(items, temporary)
        if not temporary.exists():
            raise Failure(f"{path}: {describe(model.modality)} wrote nothing")


def _write_each(model: Model, items: list[Any], names: list[str], out: Path) -> None:
    if len({*names}) < len(names):
        names = [f"{i:03}-{name}" for i, name in enumerate(names)]
    for item, name in zip(items, names, strict=True):
        _write(model, [item], out / f"{name}{model.modality.suffixes[0]}")
    click.echo(f"{out}: {len(items)} files")


VERBS = (train, runs, evaluate_command, reconstruct, sample, interpolate, encode, decode, export)
