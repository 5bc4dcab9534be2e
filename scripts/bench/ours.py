"""Our side: the command `ae train`, watched from outside, and what it leaves in its run directory.

The speed is the one in `timings.jsonl`; memory and wall-clock time are the whole command's, from
its start to its end with its checkpoints and its picture. When the loop began is when
`timings.jsonl` appeared.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.work import LEARNING_RATE, Work, negative_elbo, peak_mb, read_digits, speed_of

CONV_VAE = Path(__file__).with_name("conv_vae.py")

#: What the others do not have, and the one net that all of them train.
ALIKE = {
    "train.lr": LEARNING_RATE,
    "train.schedule": "constant",
    "train.warmup": 0,
    "train.ema": 0,
    "train.validation": 0,
    "train.clip": 0,
}
DENSE = {
    "encoder.hidden": "[512]",
    "encoder.activation": "relu",
    "bottleneck.name": "gaussian",
    "bottleneck.z_dim": 16,
    "decoder.hidden": "[512]",
    "decoder.activation": "relu",
}
RECIPES = {"dense": "mnist-dense-ae", "conv": "mnist-conv-vae"}


def command(work: Work, out: Path, settings: Sequence[str]) -> list[str]:
    """The line that trains a work; a user types `ae` for its first three words."""
    changes = {
        **ALIKE,
        **(DENSE if work.net == "dense" else {}),
        "train.epochs": work.epochs,
        "train.batch_size": work.batch_size,
        "train.evaluate_every": work.chunk / work.per_epoch,
    }
    words = [sys.executable, "-m", "ae_toolkit"]
    words += ["--import", str(CONV_VAE)] if work.net == "conv" else []
    words += ["train", RECIPES[work.net], "--data", "mnist", "--out", str(out)]
    words += ["--device", work.device]
    for pair in (*(f"{key}={value}" for key, value in changes.items()), *settings):
        words += ["--set", pair]
    return words


def train(work: Work, out: Path, settings: Sequence[str], env: dict[str, str]) -> dict[str, Any]:
    """Runs the command and reads what it left.

    Raises:
        RuntimeError: it failed; the message is its last line.
    """
    timings = out / "timings.jsonl"
    appeared: list[float] = []
    spawned = time.time()
    with (out.parent / f"{out.name}.log").open("w+") as log:
        process = subprocess.Popen(
            command(work, out, settings),
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**env, "AE_DATA": work.folder},
        )

        def watch() -> None:
            while process.returncode is None and not timings.exists():
                time.sleep(0.01)
            appeared.append(time.time() - spawned)

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.time() - spawned
        watcher.join()
        log.seek(0)
        said = log.read()
    if process.returncode:
        raise RuntimeError((said.strip().splitlines() or ["it said nothing"])[-1])
    rows = [json.loads(line) for line in timings.read_text().splitlines()]
    speeds = [row["examples_per_second"] for row in rows]
    started, images, marks = appeared[0], 0, []
    for row in rows:
        now = row["step"] * work.batch_size
        marks.append((now - images, started + row["seconds"]))
        images = now
    steady = statistics.median(speeds[1:] or speeds)
    engine = re.findall(r"\b(fp32|bf16)\b", said)
    return {
        **speed_of(started, marks, work.batch_size, steady=steady)._asdict(),
        "wall": wall,
        "peak_mb": peak_mb(usage),
        "precision": engine[-1] if engine else "fp32",
        "compiled": json.loads((out / "engine.json").read_text())["compiled"],
        "steady_with_saving": speed_of(started, marks, work.batch_size).steady,
    }


def judge(work: Work, out: Path) -> dict[str, float]:
    """The negative ELBO of a run directory."""
    from ae_toolkit import load
    from bench import conv_vae  # noqa: F401 (registers the parts)

    net = load(out).autoencoder
    empty = net.embed({}, like=next(net.parameters()).new_zeros(1))

    def encode(x: Any) -> Any:
        c = empty.expand(len(x), -1)
        return tuple(net.bottleneck.posterior(net.encoder(x, c, None), c))

    def decode(z: Any) -> Any:
        return net.decoder.params((z,), empty.expand(len(z), -1), None)

    return negative_elbo(encode, decode, read_digits(work.folder, "test")[: work.num_test])
