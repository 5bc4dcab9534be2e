"""Makes a bundled model again: `python scripts/reproduce.py NAME`, or `all`.

Trains the recipe of that name with its recorded seed, writes its weights in bf16 with their card
to `plugins/*/weights/NAME`, and measures them from that file, on the test split, once. `--measure`
does only the last part, for weights that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ae_audio.latent.evaluate import MEASURE_WORDS as NOTE_WORDS
from ae_audio.latent.evaluate import measure as measure_notes
from ae_music.latent.attributes import DIRECTIONS_FILE, find_directions
from ae_music.latent.attributes import write_directions as write_attributes
from ae_music.latent.evaluate import MEASURE_WORDS, MUSICVAE_PAPER, SAMPLE_WORDS
from ae_music.latent.evaluate import measure as measure_melodies

from ae_toolkit import __version__, fit, load
from ae_toolkit.data.examples import load_data
from ae_toolkit.inference import zoo
from ae_toolkit.inference.evaluate import evaluate
from ae_toolkit.recipe import named, summary
from ae_toolkit.registry import recipes
from ae_toolkit.runs import checkpoint

ROOT = Path(__file__).parents[1]

NAMES = (
    "mnist-2d",
    "mnist-2d-bernoulli",
    "fashion-2d",
    "mnist-vae",
    "mnist-ae",
    "mnist-denoise",
    "mnist-superres",
    "mnist-superres-4x",
    "mnist-cvae",
    "mnist-aae",
    "mnist-vqvae",
    "sprites-betatc",
    "melody-2bar",
    "melody-16bar",
    "note-timbre",
    "note-denoise",
)

MELODIES = tuple(name for name in NAMES if name.startswith("melody"))

#: Trained and measured for comparison, but not shipped: the report goes to `docs/NAME.json`.
COMPARED = ("melody-2bar-ar",)

CLOCK = "reproduce_seconds.json"  #: in a run directory

DECIMALS = {"mse": 5, "psnr": 2, "pixel_bce": 4, "level_distance": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = [*NAMES, *COMPARED, "all"]
    parser.add_argument("names", nargs="+", choices=known, metavar="NAME")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs/reproduce", help="run directories"
    )
    parser.add_argument("--measure", action="store_true", help="do not train")
    options = parser.parse_args()
    for name in NAMES if "all" in options.names else options.names:
        run, weights = options.runs / name, folder_of(name)
        if name in COMPARED:
            if not options.measure:
                train(name, run)
            report = measure_melodies(load(run), progress=True).report
            report["minutes"] = round(spent(run) / 60, 1)
            checkpoint.write_text(report_of(name), json.dumps(report, indent=2) + "\n")
            continue
        if not options.measure:
            seconds = train(name, run)
            zoo.export(str(run), weights, dtype="bf16", card=card_of(name, seconds))
            if name in MELODIES:
                write_directions(weights)
        measure(weights)
    update_readme(ROOT / "README.md")


def folder_of(name: str) -> Path:
    """`plugins/PACKAGE/weights/NAME` of the package that declares the recipe."""
    value = next(value for known, _, value in recipes.origins() if known == name)
    return ROOT / "plugins" / value.partition(".")[0] / "weights" / name


def train(name: str, run: Path) -> float:
    """Trains, or goes on with what was begun, and returns the seconds that it took in all."""
    before, began = spent(run), time.perf_counter()
    try:
        fit(named(name), run, resume=(run / checkpoint.CONFIG_FILE).exists())
    finally:
        seconds = before + time.perf_counter() - began
        if run.exists():
            (run / CLOCK).write_text(json.dumps(seconds))
    return seconds


def spent(run: Path) -> float:
    """The seconds of training that a run directory has seen."""
    clock = run / CLOCK
    return json.loads(clock.read_text()) if clock.exists() else 0.0


def card_of(name: str, seconds: float) -> dict[str, Any]:
    recipe = named(name)
    return {
        "summary": summary(recipes.get(name)),
        "command": f"python scripts/reproduce.py {name}",
        "seed": recipe.train.seed,
        "data": f"{recipe.data.name}, training split; "
        f"{recipe.train.validation:.0%} of it held out to choose the checkpoint",
        "minutes": round(seconds / 60, 1),
        "machine": f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores "
        f"({platform.machine()}), no GPU",
        "versions": {"ae-toolkit": __version__, "torch": torch.__version__.partition("+")[0]},
    }


def report_of(name: str) -> Path:
    return ROOT / "docs" / f"{name}.json"


def write_directions(weights: Path) -> None:
    """Finds the directions of attributes in the training data and ships them with the weights."""
    model = load(weights)
    found = find_directions(model, load_data(model.recipe, model.modality, "train"), progress=True)
    write_attributes(found, weights / DIRECTIONS_FILE)


def measure(weights: Path) -> None:
    """Measures the shipped file and writes what was measured beside it."""
    config, model = checkpoint.load_config(weights), load(weights)
    melodies = weights.name in MELODIES
    report = evaluate(model, num_samples=0 if melodies else None, progress=True)
    if model.recipe.condition == ("pitch",):
        report["notes"] = measure_notes(model, progress=True)
    if melodies:
        report["melodies"] = measure_melodies(model, progress=True).report
    named_as = summary(recipes.get(weights.name))
    card = {**config.card, "summary": named_as, "metrics": report}
    text = checkpoint.config_json(config.recipe, metrics=config.metrics, card=card)
    checkpoint.write_text(weights / checkpoint.CONFIG_FILE, text)
    checkpoint.note_checksums(weights)
    checkpoint.write_text(weights / "README.md", readme(weights, card))


def readme(weights: Path, card: dict[str, Any]) -> str:
    report, size = card["metrics"], (weights / checkpoint.WEIGHTS_FILE).stat().st_size
    rows = {
        "made by": f"`{card['command']}`",
        "seed": card["seed"],
        "data": card["data"],
        "training": f"{card['minutes']} minutes on {card['machine']}",
        "versions": ", ".join(f"{k} {v}" for k, v in card["versions"].items()),
        "weights": f"{size / 1e6:.2f} MB, bf16",
        **numbers(report),
    }
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    measured = (
        f"Measured from this file on the {report['num_examples']:,} examples of the test split "
        f"by `ae evaluate {weights.name} --json`."
    )
    return f"# {weights.name}\n\n{card['summary']}\n\n| | |\n|---|---|\n{lines}\n\n{measured}\n"


def numbers(report: dict[str, Any]) -> dict[str, str]:
    """What a card shows of a report, named for what it is."""
    rows = {}
    if "rate" in report:
        total = "negative ELBO" if report["is_density"] else "distortion + rate"
        key = "negative_elbo" if report["is_density"] else "distortion_plus_rate"
        rows[f"**{total}**"] = f"**{report[key]:.2f}**"
        rows["rate"] = f"{report['rate']:.2f} nats"
    rows["distortion"] = f"{report['distortion']:.2f} ({report['likelihood']})"
    if "nll" in report:
        k = report["nll_num_samples"]
        rows[f"**NLL, importance-weighted, k = {k}**"] = (
            f"**{report['nll']:.2f} nats** (corruption: {report['corruption']})"
        )
    rows["active units"] = f"{report['active_units']} of {report['z_dim']}"
    for key, words in MEASURE_WORDS.items() if "melodies" in report else ():
        if key in report["melodies"] and key not in ("rate", "distortion"):
            rows[words] = f"{report['melodies'][key]:.4f}"
    for key, words in NOTE_WORDS.items() if "notes" in report else ():
        rows[words] = f"{report['notes'][key]:.4g}"
    for name, value in report["metrics"].items():
        rows[name] = f"{value:.{DECIMALS.get(name, 4)}f}"
    for simple, metrics in report.get("baselines", {}).items():
        for name, value in metrics.items():
            rows[f"{name} of {simple}, for comparison"] = f"{value:.{DECIMALS.get(name, 4)}f}"
    for name, value in report["probes"].items():
        rows[f"{name}, by 10 nearest codes"] = f"{value:.1%}"
    return rows


def update_readme(path: Path) -> None:
    """Writes the measured numbers between the README's two marks."""
    lines = ["| model | what it is | measured | minutes of training |", "|---|---|---|---|"]
    bundled = zoo.bundled()
    cards = {n: checkpoint.load_config(bundled[n]).card for n in NAMES if n in bundled}
    for name, card in cards.items():
        lines.append(
            f"| `{name}` | {card['summary']} | {headline(card['metrics'])} | {card['minutes']} |"
        )
    between(path, "models", lines)
    reports = {name: cards[name]["metrics"]["melodies"] for name in MELODIES if name in cards}
    for name in COMPARED:
        if report_of(name).exists():
            reports[name] = json.loads(report_of(name).read_text())
    between(path, "melodies", melodies_table(reports))
    if "note-timbre" in cards:
        between(path, "notes", notes_table(cards["note-timbre"]["metrics"]["notes"]))


def between(path: Path, mark: str, lines: list[str]) -> None:
    """Replaces what stands between two marks of a file."""
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    head, _, rest = path.read_text().partition(start)
    table = "\n".join(lines)
    path.write_text(f"{head}{start}\n{table}\n{end}{rest.partition(end)[2]}")


def melodies_table(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The paper's tables, a column for each model, the paper's own numbers beside them."""
    columns = " | ".join(f"`{name}`" for name in reports)
    lines = [f"| | {columns} | MusicVAE, 2 bars | 16 bars |", "|---" * (len(reports) + 3) + "|"]

    def add(words: str, numbers: Sequence[str], key: str = "") -> None:
        paper = [
            f"{MUSICVAE_PAPER[bars][key]:.3f}" if key in MUSICVAE_PAPER[bars] else ""
            for bars in (2, 16)
        ]
        lines.append(f"| {words} | {' | '.join([*numbers, *paper])} |")

    for key, words in MEASURE_WORDS.items():
        digits = 1 if key in ("rate", "distortion") else 3
        numbers = [f"{r[key]:.{digits}f}" if key in r else "" for r in reports.values()]
        add(words, numbers, key)
    walks = [report["interpolation"] for report in reports.values()]
    add("interpolation: steps that do not turn back", [f"{w['monotone_steps']:.3f}" for w in walks])
    add("– the largest step, in the mean", [f"{w['largest_step']:.3f}" for w in walks])
    for key, words in SAMPLE_WORDS.items():
        how = "" if key.startswith("copies") else ", total variation"
        numbers = [f"{report['samples'][key]:.3f}" for report in reports.values()]
        add(f"samples of the prior: {words}{how}", numbers)
    rows = [report["shift"]["density"] for report in reports.values()]
    add(
        "density raised by its direction, +2 (steps changed)",
        [f"{row['raised']:.0%} ({row['hamming']:.0%})" for row in rows],
    )
    return lines


def notes_table(report: Mapping[str, Any]) -> list[str]:
    """What is heard of notes, in words."""
    lines = ["| | `note-timbre` |", "|---|---|"]
    for key, words in NOTE_WORDS.items():
        value = report[key]
        shown = (
            f"{value:.2f}"
            if key.startswith(("lsd", "level")) and "below" not in key
            else f"{value:.1%}"
        )
        lines.append(f"| {words} | {shown if key != 'decoding' else f'{value:.0f}'} |")
    return lines


def headline(report: dict[str, Any]) -> str:
    """The number that a model is judged by, with its name."""
    if "melodies" in report:
        melodies = report["melodies"]
        return (
            f"**{melodies['accuracy_sampled']:.3f}** of steps right when drawn, at a rate of "
            f"{melodies['rate']:.1f} nats; {melodies['exact']:.1%} of windows whole"
        )
    if "notes" in report:
        notes = report["notes"]
        return (
            f"**{notes['lsd']:.2f} dB** from notes of unheard instruments (a PCA of the same size "
            f"{notes['lsd_pca']:.2f}, one for every pitch {notes['lsd_pca_per_pitch']:.2f}, no "
            f"model at all {notes['lsd_floor']:.2f}); pitch kept in {notes['pitch_kept']:.1%}"
        )
    if "level_distance" in report["metrics"]:
        noisy, gated = (report["baselines"][name]["level_distance"] for name in ("input", "gate"))
        return (
            f"**{report['metrics']['level_distance']:.2f} dB** from the clean note (noisy: "
            f"{noisy:.2f} dB, through a gate: {gated:.2f} dB)"
        )
    if "nll" in report:
        return f"**{report['nll']:.2f}** nats, NLL with k = {report['nll_num_samples']}"
    if "rate" not in report:
        metrics, beside = report["metrics"], report.get("baselines", {})
        others = [f"{name} {values['psnr']:.2f} dB" for name, values in beside.items()]
        more = f" ({', '.join(others)})" if others else ""
        return f"**{metrics['pixel_bce']:.4f}** BCE per pixel, {metrics['psnr']:.2f} dB{more}"
    terms = f"{report['distortion']:.2f} {report['likelihood']} + {report['rate']:.2f} rate"
    return f"**{report['distortion_plus_rate']:.2f}** = {terms}"


if __name__ == "__main__":
    main()
