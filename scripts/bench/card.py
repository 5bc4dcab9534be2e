"""A card's side of `scripts/prove_cuda.py`: it is compared with the CPU, and trains while watched.

Each task runs in a process of its own, gets its arguments as JSON and returns what JSON can hold.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import report

TOLERANCE = 1e-4  #: relative to the largest entry, between a card and the CPU in fp32
NUM_COMPARED = 16  #: examples that are encoded on both

#: Recipes, the bundled data that each learns from, and epochs: 200 to 280 steps.
RECIPES = {
    "mnist-2d": ("mnist-sample", 100),
    "mnist-vae": ("mnist-sample", 20),
    "melody-2bar": ("tunes-sample", 20),
}
#: Precisions, and whether steps are compiled.
WAYS = (("fp32", "off"), ("fp32", "on"), ("bf16", "off"), ("bf16", "on"))
#: For `--small`: as many steps as the profiler needs, of few examples; a small net in three ways.
SMALL = {"train.batch_size": 8, "train.epochs": 0.3}
SMALL_NET = {"encoder.hidden": [64], "decoder.hidden": [64]}
SMALL_WAYS = {"mnist-2d": WAYS[:3]}

#: Category in a trace of what a device computes.
COMPUTING = {"cuda": "kernel", "cpu": "cpu_op"}


def machine(device: str, small: bool) -> dict[str, Any]:
    """The card, the processor and the versions."""
    import torch

    from ae_toolkit.training.step import compiles_whole_steps

    found = report.machine(torch.get_num_threads(), device)
    return found | {"cuda": torch.version.cuda, "whole_steps": compiles_whole_steps()}


def equality(device: str, small: bool) -> dict[str, Any]:
    """How far a device is from the CPU in fp32, as a share of the largest entry.

    The same weights, batch and noise go through each recipe's loss on both: its terms and all
    gradients are compared; then the codes of the model that ships under its name.
    TF32, which PyTorch allows convolutions in by default, is off.
    """
    import torch

    from ae_toolkit import load
    from ae_toolkit.randomness import replay
    from ae_toolkit.recipe import named
    from ae_toolkit.training.distributed import Ranks
    from ae_toolkit.training.engine import Engine
    from ae_toolkit.training.setup import prepare
    from ae_toolkit.training.step import compute_loss

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    devices = torch.device("cpu"), torch.device(device)
    off: dict[str, float] = {}
    for name in RECIPES:
        how = {"train.precision": "fp32", "train.compile": "off"}
        recipe = named(name).with_({**settings_of(name, small), **how})
        setups = [
            prepare(recipe, Engine.pick(recipe.train, each), each, Ranks()) for each in devices
        ]
        batch, noise = setups[0].batches.at(0), setups[0].noise.draw(0)
        terms, gradients, codes = [], [], []
        for setup in setups:
            drawn = [tensor.to(setup.device) for tensor in noise]
            step = replay(torch.full((), 0.5, device=setup.device), drawn)
            loss, row = compute_loss(setup, batch.to(setup.device), step)
            loss.backward()
            terms.append(row.cpu())
            of = [weight.grad for weight in setup.model.parameters()]
            gradients.append(torch.cat([g.flatten().cpu() for g in of if g is not None]))
            some = setups[0].held_out.select(range(NUM_COMPARED))
            codes.append(load(name, device=str(setup.device)).encode_examples(some).cpu())
        for what, (here, there) in {"loss": terms, "gradients": gradients, "codes": codes}.items():
            off[f"{name}: {what}"] = float((here - there).abs().max() / here.abs().max())
    wrong = [f"{name} by {far:.1e}" for name, far in off.items() if not far <= TOLERANCE]
    return {"off": off} | ({"failed": f"off the CPU: {', '.join(wrong)}"} if wrong else {})


def train(name: str, device: str, small: bool) -> list[dict[str, Any]]:
    """Trains a recipe in every way; a row each, with `failed` where something is wrong."""
    from ae_toolkit.errors import describe_error

    rows = []
    for precision, compiled in SMALL_WAYS.get(name, WAYS[:1]) if small else WAYS:
        row: dict[str, Any] = {"precision": precision, "compiled": compiled == "on"}
        how = {"train.precision": precision, "train.compile": compiled}
        try:
            row |= measured({**settings_of(name, small), **how}, name, device)
        except Exception as error:  # whatever one way does, the others are tried
            row["failed"] = f"{name}, {precision}, compile={compiled}: {describe_error(error)}"
        rows.append(row)
    return rows


def measured(changes: Mapping[str, Any], name: str, device: str) -> dict[str, Any]:
    """Trains with the profiler on; what it came to, how fast, and how busy the device was."""
    import torch

    from ae_toolkit import fit
    from ae_toolkit.recipe import named
    from ae_toolkit.training.callbacks.profiler import RECORDED_STEPS
    from ae_toolkit.training.step import compiles_whole_steps

    on_card = device != "cpu"
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    recipe = named(name).with_(dict(changes))
    run, began = Path(tempfile.mkdtemp(dir=".")) / "run", time.perf_counter()
    fit(recipe, run, device=device, progress=False, profile=True)
    seconds = time.perf_counter() - began
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = [row["loss"] for row in lines if row["split"] == "validation"]
    timings = map(json.loads, (run / "timings.jsonl").read_text().splitlines())
    speeds = [row["examples_per_second"] for row in timings]
    speed = statistics.median(speeds[1:])  # the first stretch compiles and is recorded
    events = json.loads((run / "profile.json").read_text())["traceEvents"]
    busy_ms = busy_us(events, COMPUTING[device]) / RECORDED_STEPS / 1000
    launches = sum(event.get("name") == "cudaGraphLaunch" for event in events) / RECORDED_STEPS
    row = {
        "losses": losses,
        "examples_per_s": speed,
        "step_ms": 1000 * recipe.train.batch_size / speed,
        "busy_ms": busy_ms,
        "busy_share": busy_ms * speed / recipe.train.batch_size / 1000,
        "graph_launches": launches,
        "peak_mb": torch.cuda.max_memory_allocated() / 1e6 if on_card else None,
        "seconds": seconds,
    }
    if not losses[-1] < losses[0]:
        row["failed"] = f"the loss did not fall: {losses[0]:.2f} to {losses[-1]:.2f}"
    elif on_card and recipe.train.compile == "on" and compiles_whole_steps() and not launches:
        row["failed"] = "compiled, but no CUDA graph was launched"
    return row


def settings_of(name: str, small: bool) -> dict[str, Any]:
    """What is trained of a recipe: as much as is long enough, validated five times."""
    data, epochs = RECIPES[name]
    settings = {"data.name": data, "train.epochs": epochs}
    if small:
        settings |= SMALL | (SMALL_NET if name == "mnist-2d" else {})
    return {**settings, "train.evaluate_every": settings["train.epochs"] / 5}


def busy_us(events: Iterable[Mapping[str, Any]], category: str) -> float:
    """Microseconds in which at least one event of a category of a trace goes on."""
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == category)
    total, until = 0.0, float("-inf")
    for start, end in spans:
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


TASKS: dict[str, Callable[..., Any]] = {"machine": machine, "equality": equality, "train": train}
