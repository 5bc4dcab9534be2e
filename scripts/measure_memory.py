"""Memory and speed of a training on data that does not fit into memory.

    python scripts/measure_memory.py             # 20 GB against 4 and 1; needs the disk for it
    python scripts/measure_memory.py --gb 1 4

Makes folders of small files that say which examples they stand for, as many as make so many
gigabytes; reads each into a corpus and trains on it, in a process of its own; and prints the peaks
of resident memory. Data of 1 GB is trained on in memory; what is larger than 2 GB should have the
same peak at any size. The data is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ae_toolkit import Example, Modality, Recipe
from ae_toolkit.registry import modalities

SIDE = 28
ROWS = 5000  #: examples of a file


@modalities.register("synthetic")
class Synthetic(Modality):
    """Files with a seed in them, which stands for five thousand examples of 784 bytes."""

    suffixes: ClassVar[tuple[str, ...]] = (".seed",)

    def __init__(self) -> None:
        self.shape = (1, SIDE, SIDE)

    def read(self, path: Path) -> Iterator[Tensor]:
        generator = np.random.default_rng(int(path.read_text()))
        yield torch.from_numpy(generator.integers(0, 256, (ROWS, *self.shape), np.uint8))

    def to_tensor(self, item: Tensor) -> Example:
        return Example(item[0])

    def segments(self, item: Tensor) -> list[Example]:
        return [Example(row) for row in item]

    def prepare(self, y: Tensor) -> Tensor:
        return y.float() / 255

    def from_tensor(
        self, y: Tensor, *, like: Any = None, labels: Mapping[str, float] | None = None
    ) -> Tensor:
        return y[None]

    def write(self, items: Sequence[Tensor], path: Path) -> None:
        raise NotImplementedError

    def figure(self, rows: Mapping[str, Sequence[Any]], path: Path) -> None:
        path.touch()


def recipe(folder: Path, *, epochs: float) -> Recipe:
    return Recipe.of(
        {
            "name": "synthetic",
            "data": {"name": "files", "path": str(folder)},
            "modality": {"name": "synthetic"},
            "encoder": {"name": "mlp", "hidden": [64]},
            "bottleneck": {"name": "gaussian", "z_dim": 8},
            "decoder": {"name": "mlp", "hidden": [64]},
            "likelihood": {"name": "cross-entropy"},
            "train": {
                "epochs": epochs,
                "batch_size": 512,
                "lr": 1e-3,
                "evaluate_every": epochs,
                "validation": 0.001,
                "compile": "off",
            },
        }
    )


def measure(folder: Path, examples: int) -> None:
    """Reads and trains in this process, and prints one line of JSON."""
    from ae_toolkit import fit
    from ae_toolkit.data.folder import read_folder

    began = time.perf_counter()
    corpus = read_folder([folder], Synthetic())
    seconds = time.perf_counter() - began
    found, size = len(corpus.examples), corpus.examples.nbytes
    ingested = peak()
    del corpus
    run = fit(recipe(folder, epochs=examples / found), folder / "run", progress=False)
    last = json.loads((run / "timings.jsonl").read_text().splitlines()[-1])
    row = {
        "gigabytes": round(size / 1e9, 2),
        "examples": found,
        "read_per_second": round(found / seconds),
        "trained_on": examples,
        "trained_per_second": last["examples_per_second"],
        "peak_reading_mb": ingested,
        "peak_mb": peak(),
    }
    print(json.dumps(row))


def peak() -> int:
    """The most memory that this process had, in megabytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gb", type=float, nargs="+", default=[1, 4, 20], help="sizes of corpora")
    parser.add_argument("--examples", type=int, default=2_000_000, help="to train on")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        return measure(options.folder, options.examples)
    rows = []
    for gigabytes in options.gb:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "files"
            folder.mkdir()
            # A tenth more, since that is held out for the test.
            for i in range(round(gigabytes / 0.9 * 1e9 / (ROWS * SIDE * SIDE))):
                (folder / f"{i:06d}.seed").write_text(str(i))
            command = [sys.executable, __file__, "--folder", folder]
            command += ["--examples", str(options.examples)]
            environment = {**os.environ, "XDG_CACHE_HOME": temporary}
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        if not options.json:
            print("  ".join(f"{name} {value:,}" for name, value in rows[-1].items()), flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    from measure_memory import main as run  # so that other processes can import what is here

    run()
