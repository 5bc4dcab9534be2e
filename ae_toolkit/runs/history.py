"""What has been trained: run directories as they lie on the disk, listed and compared.

    ae runs                     # a table of runs/
    ae runs runs/a runs/b       # what differs, and what came of it

Reads JSON and nothing else, so that it answers at once and also of runs whose parts are missing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ae_toolkit.errors import RunError, UsageError
from ae_toolkit.files import is_sealed, parse_json, read_bytes, read_json
from ae_toolkit.runs.lock import in_training

METRICS_FILE, TIMINGS_FILE, CONFIG_FILE = "metrics.jsonl", "timings.jsonl", "config.json"

MAX_LOG_BYTES = 256 << 20
LAST_SECOND = 253_402_300_799  #: of the year 9999, since 1970


class Run(NamedTuple):
    """One run."""

    path: Path
    recipe: str
    state: str  #: `running`, `finished` or `interrupted`
    step: int  #: that has been logged last
    steps: int  #: in all, as far as can be said; 0: it cannot
    best: Mapping[str, Any]  #: the validation row of least loss, or else the last row of training
    examples_per_second: float  #: when it was logged last; 0: it was not
    moved: float  #: when something was written last, seconds since 1970
    settings: Mapping[str, Any]  #: of the recipe, by dotted key
    rows: Sequence[Mapping[str, Any]]  #: of `metrics.jsonl`

    @property
    def summary(self) -> dict[str, Any]:
        """What there is to know of it, for programs."""
        keep = {k: v for k, v in self._asdict().items() if k not in ("settings", "rows")}
        return {**keep, "path": str(self.path), "best": dict(self.best)}


def read(path: Path) -> Run:
    """Reads one run directory, and raises a `RunError` where it is none, or broken."""
    try:
        raw = read_json(path / CONFIG_FILE)
        sealed, settings = is_sealed(raw, but=("card",)), dict(leaves(raw["recipe"]))
        recipe, epochs = str(settings["name"]), _number(settings, "train.epochs", below=1e12)
        patience = _number(settings, "train.patience", whole=True)
    except (UsageError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f" ({error})" if (path / CONFIG_FILE).exists() else ""
        raise RunError(f"{path}: holds no run, it is passed over{why}") from None
    if not sealed:
        raise RunError(
            f"{path}: its {CONFIG_FILE} has changed since it was written, it is passed over"
        )
    if not ((path / METRICS_FILE).exists() or (path / "checkpoints").is_dir()):
        raise RunError(f"{path}: is a model, not a run; it is passed over")
    rows, timings = _lines(path / METRICS_FILE), _lines(path / TIMINGS_FILE)
    step, epoch = (rows[-1]["step"], rows[-1]["epoch"]) if rows else (0, 0.0)
    ends = epochs * step / epoch if epoch else 0.0
    steps = max(round(ends), 1) if 0 < ends < 2**63 else 0
    checked = [row for row in rows if row["split"] == "validation"]
    best: dict[str, Any] = min(
        reversed(checked or rows[-1:]), key=lambda row: row["loss"], default={}
    )
    losses = [row["loss"] for row in checked]
    stale = len(losses) - losses.index(min(losses)) - 1 if losses else 0
    saved = [folder.name for folder in path.glob("checkpoints/step_*")]
    over = (0 < steps <= step) or (patience and stale >= patience)
    state = "finished" if over and f"step_{step:07d}" in saved else "interrupted"
    written = [path / CONFIG_FILE, path / METRICS_FILE, path / TIMINGS_FILE, path / "checkpoints"]
    return Run(
        path=path,
        recipe=recipe,
        state="running" if in_training(path) else state,
        step=step,
        steps=steps,
        best=best,
        examples_per_second=timings[-1].get("examples_per_second", 0) if timings else 0,
        moved=min(max(p.stat().st_mtime for p in written if p.exists()), LAST_SECOND),
        settings=settings,
        rows=rows,
    )


def find(folder: Path) -> tuple[list[Run], list[str]]:
    """The run that a folder is, or the runs in it, and a sentence for whatever is none.

    Returns:
        Runs, the one that moved last first, and sentences.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder; 'ae train' makes runs in runs/")
    places = [folder] if (folder / CONFIG_FILE).exists() else sorted(folder.iterdir())
    found, passed = [], []
    for place in places:
        if not place.is_dir() or place.name.startswith("."):
            continue
        try:
            found.append(read(place))
        except RunError as error:
            passed.append(str(error))
    return sorted(found, key=lambda run: -run.moved), passed


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, a value for each; None: it has none."""
    keys = sorted({key for run in runs for key in run.settings})
    table = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: row for key, row in table.items() if any(value != row[0] for value in row)}


def outcomes(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """What came of runs, a value for each; None: it has none."""
    numbers = ("loss", "distortion", "rate", "penalty", "active_units")
    table: dict[str, list[Any]] = {
        "state": [run.state for run in runs],
        "step": [run.step for run in runs],
        "best step": [run.best.get("step") for run in runs],
        **{name: [run.best.get(name) for run in runs] for name in numbers},
        "train loss": [
            next((r["loss"] for r in reversed(run.rows) if r["split"] == "train"), None)
            for run in runs
        ],
        "examples_per_second": [run.examples_per_second or None for run in runs],
    }
    return {name: row for name, row in table.items() if any(value is not None for value in row)}


def plot_curves(runs: Sequence[Run], path: Path) -> None:
    """Draws the losses of runs over their epochs: validation in full, training faintly.

    Raises:
        UsageError: none of them has a loss yet, or the ending is of no format that figures have.
        RunError: the place cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from ae_toolkit.figures import PLOT_STYLE, save_figure

    if not any(run.rows for run in runs):
        raise UsageError(f"{path}: there is no loss to draw yet")
    style: Any = PLOT_STYLE
    with rc_context(style):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        plot = figure.subplots()
        for i, run in enumerate(runs):
            for split, alpha in (("train", 0.4), ("validation", 1.0)):
                rows = [row for row in run.rows if row["split"] == split]
                # The first tenth falls from far above, so it is left out.
                points = [(row["epoch"], row["loss"]) for row in rows[len(rows) // 10 :]]
                epochs, losses = zip(*points, strict=True) if points else ((), ())
                plot.plot(epochs, losses, color=f"C{i}", alpha=alpha, linewidth=1.0)
            plot.plot([], [], color=f"C{i}", label=run.path.name)
        plot.set(xlabel="epoch", ylabel="loss per example")
        plot.spines[["top", "right"]].set_visible(False)
        plot.legend(frameon=False)
    save_figure(figure, path, style=style)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a `.jsonl`, less a last one that is just being written."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    try:
        text = read_bytes(path, max_bytes=MAX_LOG_BYTES).decode()
        for line in text.split("\n")[:-1]:
            row = parse_json(line)
            rows.append(row)
            _number(row, "step", whole=True, below=2**53)
            _number(row, "epoch", below=1e12)
            if path.name == TIMINGS_FILE:
                _number(row, "examples_per_second", below=math.inf)
                continue
            if row.get("split") not in ("train", "validation"):
                raise ValueError(f"'split' is {row.get('split')!r}")
            for name in {"loss", "distortion", "rate"} & {"loss", *row}:
                _number(row, name, least=None)
    except (ValueError, TypeError, RunError) as error:
        raise RunError(
            f"{path.parent}: its {path.name} is broken, it is passed over "
            f"(line {len(rows)}: {error})"
        ) from None
    return rows


def _number(
    row: Any,
    name: str,
    *,
    least: float | None = 0.0,
    below: float | None = None,
    whole: bool = False,
) -> Any:
    """A number of a row that was read; a `ValueError` where it is none or lies outside."""
    if not isinstance(row, Mapping):
        raise ValueError("it is no object")
    value: Any = row.get(name)
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    good = (good and abs(value) <= sys.float_info.max) or value != value
    if good and (least is None or value >= least) and (below is None or value < below):
        return value
    raise ValueError(f"{name!r} is {repr(value)[:100]}")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as `("outer.inner", value)`, in order."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
