"""The verbs that judge a trained model, and by it what it is given: evaluate and score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ae_toolkit.cli.models import load_model, read_inputs
from ae_toolkit.cli.options import (
    device_option,
    json_option,
    label_option,
    need_ending,
    parse_labels,
    print_json,
    print_table,
    report_skipped,
    seed_option,
)
from ae_toolkit.errors import UsageError
from ae_toolkit.files import announce

if TYPE_CHECKING:
    from torch import Tensor

    from ae_toolkit.data.examples import Examples
    from ae_toolkit.inference.model import Model

FIGURE_ENDINGS = (".png", ".svg", ".pdf")
CURVE_COLUMNS = ("spread", "rate", "distortion")

#: What an item of several segments has the sum of; of the rest it has the mean.
SUMMED_NUMBERS = ("negative_elbo", "distortion_plus_rate", "nll", "distortion", "rate")

data_option = click.option(
    "--data", help="Another data set or path; of a folder, the tenth that training leaves out."
)
limit_option = click.option(
    "--limit", type=click.IntRange(1), help="Measure only the first so many examples."
)


@click.command("evaluate")
@click.argument("model")
@data_option
@click.option("--nll", "num_samples", type=click.IntRange(0), metavar="K",
              help="Samples per example of the importance-weighted NLL; 0: none.  "
                   "[default: 500 where the likelihood is a density, or what the "
                   "model's card has]")  # fmt: skip
@click.option("--full", is_flag=True,
              help="Say too how codes lie beside the prior and what they tell, and compare "
                   "samples with data, where the data type has features for that.")  # fmt: skip
@click.option("--samples", "num_judged", default=10_000, show_default=True,
              type=click.IntRange(100), help="Drawn for --full.")  # fmt: skip
@click.option("--curve", type=click.Path(path_type=Path),
              help="Draw rate against distortion, codes drawn wider and narrower.")  # fmt: skip
@limit_option
@seed_option
@json_option
@device_option
def evaluate_command(
    model: str, as_json: bool, device: str, curve: Path | None, **options: Any
) -> None:
    """Measure MODEL on the test split.

    \b
    Examples:
      ae evaluate mnist-2d --full --json
      ae evaluate mnist-2d --curve curve.png
    """
    from ae_toolkit.inference import evaluate, judging
    from ae_toolkit.runs.history import leaves

    need_ending(curve, FIGURE_ENDINGS)
    loaded = load_model(model, device)
    points = []
    if curve:
        examples = test_split(loaded, options["data"], options["limit"])
        seed = options["seed"]
        points = judging.rate_distortion(loaded, examples, seed=seed, progress=not as_json)
    found = evaluate.evaluate(loaded, progress=not as_json, **options)
    if curve:
        from ae_toolkit.figures import draw_rate_distortion

        draw_rate_distortion(points, curve)
        found["curve"] = [dict(zip(CURVE_COLUMNS, point, strict=True)) for point in points]
    report = {"model": model, **found}
    if as_json:
        print_json(report)
        return
    errors, _ = report.pop("standard_errors", {}), report.pop("curve", None)
    for name, value in leaves(report):
        error = f" ± {errors[name]:.2g}" if name in errors else ""
        shown = f"{value:.4g}{error}" if isinstance(value, float) else f"{value}"
        click.echo(f"{name:24} {shown}")
    if curve:
        announce(f"{curve}: {len(points)} points")
    if options["full"] and not report["samples"]:
        from ae_toolkit.modality import describe

        click.echo(
            f"Samples are not compared: {describe(loaded.modality)} knows no features of this data "
            f"(or there are fewer than 100 examples).",
            err=True,
        )


@click.command("score")
@click.argument("model")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@data_option
@click.option("--against", metavar="DATA",
              help="No files: the test splits of MODEL's data and of this one, and how well each "
                   "number tells them apart.")  # fmt: skip
@click.option("--nll", "num_samples", default=0, type=click.IntRange(0), metavar="K",
              help="Samples per example of the importance-weighted NLL; 0: none.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write a table as .csv.")
@click.option("--figure", type=click.Path(path_type=Path),
              help="Draw the ROC curves of --against.")  # fmt: skip
@limit_option
@label_option
@seed_option
@json_option
@device_option
def score(
    model: str,
    files: tuple[Path, ...],
    data: str | None,
    against: str | None,
    num_samples: int,
    out: Path | None,
    figure: Path | None,
    limit: int | None,
    labels: tuple[str, ...],
    seed: int,
    as_json: bool,
    device: str,
) -> None:
    """Say how unlike its data MODEL finds each of FILES.

    A high ELBO loss, NLL or distortion marks what the model has not learned: an anomaly. With
    --against, the area under the ROC curve says how well each number marks what is of other data.

    \b
    Examples:
      ae score mnist-2d three.png shoe.png
      ae score mnist-vae --against fashion-mnist --limit 1000 --figure roc.png
    """
    from ae_toolkit.inference import evaluate

    if bool(files) == bool(against) or (files and (figure or data or limit)):
        raise UsageError(
            "give FILES to score, or --against and a data set (with which go --data, --limit and "
            "--figure)"
        )
    need_ending(out, (".csv",))
    need_ending(figure, FIGURE_ENDINGS)
    loaded = load_model(model, device)
    options: dict[str, Any] = {
        "num_samples": num_samples, "seed": seed, "progress": not as_json
    }  # fmt: skip
    if against:
        own, other = (
            evaluate.score(loaded, test_split(loaded, name, limit), **options)
            for name in (data, against)
        )
        _report_against(own, other, out=out, figure=figure, as_json=as_json)
        return
    found = read_inputs(loaded, files)
    examples, counts = loaded.segments_of(found.items, parse_labels(labels), as_targets=True)
    columns = {
        name: [
            float(each.sum() if name in SUMMED_NUMBERS else each.mean())
            for each in column.split(counts)
        ]
        for name, column in evaluate.score(loaded, examples, **options).items()
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    named = [{"file": name, **row} for name, row in zip(found.names, rows, strict=True)]
    _report(named, out=out, as_json=as_json)
    report_skipped(found.skipped, total=found.num_files)


def test_split(model: Model, data: str | None, limit: int | None) -> Examples:
    from ae_toolkit.data.examples import from_option, load_data

    recipe = model.recipe
    if data is not None:
        recipe = recipe.with_({"data": from_option(data).model_dump()})
    examples = load_data(recipe, model.modality, "test")
    return examples if limit is None else examples.select(range(min(limit, len(examples))))


def _report_against(
    own: dict[str, Tensor],
    other: dict[str, Tensor],
    *,
    out: Path | None,
    figure: Path | None,
    as_json: bool,
) -> None:
    """Says, for each number, how well it tells two data sets apart."""
    from sklearn.metrics import roc_auc_score

    rows: list[dict[str, Any]] = []
    # Of a data type's metrics, some are high for what is alike.
    own = {name: own[name] for name in SUMMED_NUMBERS if name in own}
    for name in own:
        values, is_other = [*own[name].tolist(), *other[name].tolist()], len(own[name]) * [0]
        area = roc_auc_score([*is_other, *len(other[name]) * [1]], values)
        means = {"mean here": float(own[name].mean()), "mean there": float(other[name].mean())}
        rows.append({"number": name, "auroc": float(area), **means})
    if figure:
        from ae_toolkit.figures import draw_roc

        draw_roc(own, other, figure)
        if not as_json:
            announce(f"{figure}: {len(own)} curves")
    _report(rows, out=out, as_json=as_json)


def _report(rows: list[dict[str, Any]], *, out: Path | None, as_json: bool) -> None:
    """Prints rows, or writes them."""
    if out:
        import csv

        from ae_toolkit.files import writing

        with writing(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        if not as_json:
            announce(f"{out}: {len(rows)} rows")
    if as_json:
        print_json(rows)
    elif not out:
        cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
        print_table([list(rows[0]), *cells])


MEASURE_COMMANDS = (evaluate_command, score)
