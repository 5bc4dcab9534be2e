"""Measures what the documentation says of speed: `python scripts/measure.py [--json]`.

Start-up of the command, a grid and a denoised picture from bundled weights against the bare
imports, and throughput and peak memory of a training of `mnist-2d`, each in a process of its own;
the least of several times. A blend of two tunes, a collection of them read, and melodies decoded.
Needs all of MNIST and the tunes for some of it (see the README).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

AE = [sys.executable, "-m", "ae_toolkit"]


def seconds(command: list[str], *, times: int = 3) -> float:
    """The least wall-clock time of a command."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    return min(taken)


def denoising(folder: Path, side: int) -> tuple[float, float]:
    """Seconds for a noisy square picture from file to file, and peak memory in GB."""
    noisy, clean = folder / f"noisy-{side}.png", folder / f"clean-{side}.png"
    noise = np.random.default_rng(0).normal(0.5, 0.5, (side, side)).clip(0, 1)
    Image.fromarray((255 * noise).astype(np.uint8)).save(noisy)
    taken = seconds([*AE, "image", "denoise", str(noisy), "-o", str(clean)])
    return taken, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def training(folder: Path, epochs: int) -> tuple[float, float]:
    """Median examples/s between validations, the first left out, and peak memory in GB."""
    run = folder / "run"
    command = [*AE, "train", "mnist-2d", "--out", str(run), "--quiet"]
    subprocess.run([*command, "--set", f"train.epochs={epochs}"], check=True, capture_output=True)
    lines = (run / "timings.jsonl").read_text().splitlines()[1:]
    speeds = [json.loads(line)["examples_per_second"] for line in lines]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return statistics.median(speeds), peak


def reading(folder: Path, tunes: Path) -> tuple[int, float]:
    """How many tunes there are, and seconds from cold files to cached windows of two bars."""
    code = (
        "import sys, time; from pathlib import Path; import symusic\n"
        "from ae_music.modality import Melodies; from ae_toolkit.data.folder import read_folder\n"
        "began = time.perf_counter(); read_folder([Path(sys.argv[1])], Melodies())\n"
        "print(time.perf_counter() - began)"
    )
    taken = []
    for i in range(3):
        cache = {**os.environ, "XDG_CACHE_HOME": str(folder / f"cache-{i}")}
        command = [sys.executable, "-c", code, str(tunes)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=cache)
        taken.append(float(done.stdout))
    return len(list(tunes.glob("*.mid"))), min(taken)


def decoding() -> float:
    """Two-bar melodies that are decoded in a second."""
    from ae_music.latent.evaluate import speed

    from ae_toolkit import load

    return speed(load("melody-2bar"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        grid = [*AE, "image", "grid", "-o", str(folder / "grid.png")]
        result = {
            "ae --help, s": seconds([*AE, "--help"], times=5),
            "import torch, torchvision, s": seconds(
                [sys.executable, "-c", "import torch, torchvision"]
            ),
            "ae image grid, s": seconds(grid),
        }
        bare = seconds([sys.executable, "-c", "import torch"])
        small, _ = denoising(folder, 28)
        large, large_peak = denoising(folder, 1024)
        blend = seconds([*AE, "music", "interpolate", "-o", str(folder / "blend.mid")])
        tunes = Path(os.environ.get("AE_DATA", "../shared/data")) / "midi/oneills-1850"
        num_tunes, read = reading(folder, tunes) if tunes.is_dir() else (0, math.nan)
        speed, peak = training(folder, options.epochs)
    result["grid / import"] = result["ae image grid, s"] / result["import torch, torchvision, s"]
    result["import torch, s"] = bare
    result["ae image denoise, 28x28, s"] = small
    result["denoise / import torch"] = small / bare
    result["ae image denoise, 1024x1024, s more"] = large - small
    result["peak memory up to there, GB"] = large_peak
    result["ae music interpolate, s"] = blend
    result["interpolate / import torch"] = blend / bare
    result[f"{num_tunes} tunes from files to cached windows, s"] = read
    result["two-bar melodies decoded per second"] = decoding()
    result["training mnist-2d, examples/s"] = speed
    result["training mnist-2d, peak memory, GB"] = peak
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:36} {value:,.2f}")


if __name__ == "__main__":
    main()
