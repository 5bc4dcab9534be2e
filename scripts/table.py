"""Measures every recipe of pictures alike: `python scripts/table.py [NAME …] [--epochs 4]`.

What ships is measured as it is, the rest from `runs/table/NAME`, where it is trained if it is not
there yet. The table goes to `docs/family.md`, the reports of which it is made to
`runs/table/NAME.json`; reports that are there are taken as they are.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from pathlib import Path
from typing import Any

from ae_toolkit import RunError, fit, load
from ae_toolkit.inference import zoo
from ae_toolkit.inference.evaluate import evaluate
from ae_toolkit.recipe import named
from ae_toolkit.registry import recipes
from ae_toolkit.runs import checkpoint

ROOT = Path(__file__).parents[1]
NLL_SAMPLES = 100
COLUMNS = {
    "parameters": ("parameters",),
    "minutes": ("minutes",),
    "epochs": ("epochs",),
    "distortion": ("distortion",),
    "rate": ("rate",),
    "−ELBO": ("negative_elbo",),
    f"NLL, k = {NLL_SAMPLES}": ("nll",),
    "Fréchet": ("samples", "frechet"),
    "precision": ("samples", "precision"),
    "recall": ("samples", "recall"),
    "told from the prior": ("codes", "prior_told_apart"),
    "probe": ("probes",),
    "active units": ("active_units",),
}


def image_recipes() -> list[str]:
    """Returns the names of all recipes of the image plugin."""
    return [name for name, _, value in recipes.origins() if value.startswith("ae_image")]


def measure(name: str, runs: Path, epochs: float | None) -> dict[str, Any]:
    """Returns the report of a model that ships, was trained before, or is trained now."""
    bundled, run = zoo.bundled().get(name), runs / name
    if bundled:
        card = checkpoint.load_config(bundled).card
        model, minutes = load(name), card["minutes"]
    else:
        recipe = named(name) if epochs is None else named(name).with_({"train.epochs": epochs})
        clock = runs / f"{name}.seconds"
        if not clock.exists():
            began = time.perf_counter()
            fit(recipe, run, resume=(run / checkpoint.CONFIG_FILE).exists())
            clock.write_text(f"{time.perf_counter() - began:.1f}")
        model, minutes = load(run), round(float(clock.read_text()) / 60, 1)
    density = model.autoencoder.likelihood.is_density and model.has_rate
    report = evaluate(model, num_samples=NLL_SAMPLES if density else 0, full=True, progress=True)
    return {
        "parameters": model.autoencoder.num_parameters(),
        "minutes": minutes,
        "epochs": model.recipe.train.epochs,
        "machine": f"{platform.machine()}, {torch_threads()} threads",
        **report,
    }


def torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def cell(report: dict[str, Any], path: tuple[str, ...]) -> str:
    """Returns a number as the table has it; a dash where there is none."""
    value: Any = report
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, dict):  # a probe of each label: the first
        value = next(iter(value.values()), None)
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every recipe")
    parser.add_argument("--epochs", type=float, help="of what is trained, instead of the recipe's")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/table")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    names = options.names or image_recipes()
    for name in names:
        report = options.runs / f"{name}.json"
        if not report.exists():
            try:
                found = measure(name, options.runs, options.epochs)
            except RunError as error:  # a data set that is not at hand
                print(f"{name}: {error}")
                continue
            report.write_text(json.dumps(found, indent=2))
    rows = ["| recipe | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in image_recipes():
        path = options.runs / f"{name}.json"
        if path.exists():
            report = json.loads(path.read_text())
            cells = [cell(report, where) for where in COLUMNS.values()]
            rows.append(f"| `{name}` | " + " | ".join(cells) + " |")
    page = ROOT / "docs/family.md"
    text = "\n".join(rows)
    block = re.compile(r"(<!-- table -->\n).*?(<!-- /table -->)", re.DOTALL)
    page.write_text(block.sub(lambda m: f"{m[1]}{text}\n{m[2]}", page.read_text()))
    print(text)


if __name__ == "__main__":
    main()
