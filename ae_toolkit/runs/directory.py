"""A run directory: whose it is, and which checkpoints stay."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ae_toolkit.errors import UsageError
from ae_toolkit.recipe import Recipe
from ae_toolkit.runs import checkpoint
from ae_toolkit.runs.history import leaves

RUN_FOLDERS = ("checkpoints", "figures", "tensorboard", "wandb")  #: that a training writes into

#: What a killed training leaves: temporary folders, and checkpoints on their way out.
TEMPORARY_NAME = re.compile(
    r"\.(config|engine|profile)\.json\.\w{8}|\.step_\d+(\.png)?(\.\w{8})?|\.step_\d+\.broken"
)

BROKEN_SUFFIX = ".broken"  #: the ending of a checkpoint that was set aside

#: How a run is worked on, and how long: not what it is.
RESUMABLE_SETTINGS = {"train.compile", "train.parallel", "train.epochs", "train.patience"}


def check_resumable(run: Path, recipe: Recipe, *, resume: bool, begun: bool = False) -> None:
    """Makes sure that `run` holds this recipe's run, or none.

    Args:
        run: the run directory.
        recipe: what is to be trained.
        resume: whether a run is expected.
        begun: whether an empty folder will do, as a training leaves that was killed at its start.

    Raises:
        UsageError: `run` holds another recipe's run, one where none is expected, none, or a link
            or file in place of a folder.
    """
    config = run / checkpoint.CONFIG_FILE
    if not resume and (config.exists() or (run / "checkpoints").exists()):
        raise UsageError(
            f"{run} already holds a run: add --resume to go on, or choose another --out"
        )
    for folder in (run / name for name in RUN_FOLDERS):  # somebody else's is not removed
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise UsageError(f"{folder}: must be a folder of the run itself; remove it")
    if not resume:
        return
    if not config.exists():
        if begun and all(path.name.startswith(".") for path in run.iterdir()):
            return
        raise UsageError(f"{run} holds no run to resume")
    former, mine = (
        dict(leaves(each.model_dump(mode="json")))
        for each in (checkpoint.load_config(run).recipe, recipe)
    )
    # The recipe's own name says most, where it is another one.
    keys = sorted({*former, *mine} - RESUMABLE_SETTINGS, key=lambda key: (key != "name", key))
    differ = [key for key in keys if former.get(key) != mine.get(key)]
    if differ:
        named = [f"its {key} is {former.get(key)!r}, not {mine.get(key)!r}" for key in differ[:3]]
        more = f" (and {len(differ) - 3} more differ)" if len(differ) > 3 else ""
        raise UsageError(f"{run} holds another run: {', '.join(named)}{more}")


def remove_old_checkpoints(run: Path, *, keep: int) -> None:
    """Removes all checkpoints but the best and the last few, and what was left half-written."""
    remove_temporaries(run, broken=True)
    points = checkpoint.checkpoints(run)
    kept = {point.folder for point in points[-keep:]}
    if best := checkpoint.best(run):
        kept.add(best.folder)
    for point in points:
        if point.folder not in kept:
            # What is half removed must not look like a checkpoint.
            doomed = point.folder.with_name(f".{point.folder.name}")
            point.folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def remove_temporaries(run: Path, *, broken: bool = False) -> None:
    """Removes what a training that was killed has left half-written or half removed.

    Args:
        run: the run directory.
        broken: remove checkpoints too that were set aside.
    """
    for folder in (run, run / "checkpoints", run / "figures"):
        for left in folder.glob(".*"):
            if TEMPORARY_NAME.fullmatch(left.name) and (broken or left.suffix != BROKEN_SUFFIX):
                shutil.rmtree(left, ignore_errors=True)
