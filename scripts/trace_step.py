"""Which files of ours one optimiser step enters, and how often it returns to one that it had left.

python scripts/trace_step.py [RECIPE] [--data DATA]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ae_toolkit.recipe import named
from ae_toolkit.training.distributed import Ranks
from ae_toolkit.training.engine import Engine
from ae_toolkit.training.setup import prepare
from ae_toolkit.training.step import make_step, take_step

ROOT = Path(__file__).parents[1]


def trace(recipe: str, data: str) -> list[str]:
    """Returns the files that one eager step is in, one after the other."""
    chosen, cpu = named(recipe).with_({"data": data, "train.compile": "off"}), torch.device("cpu")
    setup = prepare(chosen, Engine.pick(chosen.train, cpu), cpu, Ranks())
    step = make_step(setup, compiled=False)
    coefficients = setup.optimizer.coefficients([chosen.train.lr], first=0, steps=100)[0]
    visited: list[str] = []

    def note(frame: FrameType) -> None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path != Path(__file__):
            name = str(path.relative_to(ROOT))
            if visited[-1:] != [name]:
                visited.append(name)

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            note(frame)
        elif event == "return" and frame.f_back is not None:
            note(frame.f_back)

    take_step(setup, step, 0, coefficients)  # what is made at first is not counted
    sys.setprofile(watch)
    take_step(setup, step, 1, coefficients)
    sys.setprofile(None)
    return visited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="mnist-2d")
    parser.add_argument("--data", default="mnist-sample")
    options = parser.parse_args()
    visited = trace(options.recipe, options.data)
    for name in dict.fromkeys(visited):
        print(f"{visited.count(name):4}  {name}")
    files = len({*visited})
    print(f"{files} files, {len(visited) - files} returns to a file that had been left")


if __name__ == "__main__":
    main()
