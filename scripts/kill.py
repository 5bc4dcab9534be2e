"""Kills one training again and again, and checks that nothing was lost.

    python scripts/kill.py                            # 50 kills, about ten minutes on two cores
    python scripts/kill.py --kills 5 --seed 3
    python scripts/kill.py --set train.compile=on     # the compiled step

Trains once without interruption, then once more with the same command, which is killed (SIGKILL)
at random moments and started again. At the end the last checkpoint and `metrics.jsonl` of both must
be equal bit for bit (on one device, in fp32); after every kill, every checkpoint that has its final
name must be whole. Exits with 1 if anything differs.

Moments are drawn from the seed over the whole life of a training: some while it starts, the others
at random shares of its steps, plus a random time in which it computes, validates, logs and saves.
Most of these trainings see a new checkpoint before they die; those killed at the start do not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ae_toolkit import RunError
from ae_toolkit.runs import checkpoint

#: A training of many short steps and many checkpoints, half of whose time is spent on saving.
SETTINGS = (
    "encoder.hidden=[64]",
    "decoder.hidden=[64]",
    "train.precision=fp32",
    "train.compile=off",
    "train.batch_size=32",
    "train.epochs=60",
    "train.evaluate_every=0.1",
)
STARTING = 0.3  #: share of the kills that hit a start
PATIENCE = 300.0  #: seconds after which a training that shows nothing new counts as stuck
PHASES = ("starting", "saving", "training")


class Plan(NamedTuple):
    """When a training is to be killed.

    Attributes:
        share: of all steps that are saved before; None: while it starts.
        delay: how long after that; as a share of the time to start, or of that from one
            checkpoint to the next.
    """

    share: float | None
    delay: float


class Kill(NamedTuple):
    """What was killed when.

    Attributes:
        seconds: after its start.
        phase: what it was doing.
        step: of the last checkpoint then.
        new: checkpoints since the kill before.
    """

    seconds: float
    phase: str
    step: int
    new: int


def plans(num: int, seed: int) -> list[Plan]:
    """Draws the moments; shares grow, since a training only goes on."""
    draw = random.Random(seed)
    starting = [number < round(STARTING * num) for number in range(num)]
    draw.shuffle(starting)
    shares = sorted(draw.uniform(0, 0.97) for some in starting if not some)
    return [
        Plan(None, draw.uniform(0, 1.2)) if some else Plan(shares.pop(0), draw.uniform(0, 2))
        for some in starting
    ]


class Training:
    """One `ae train`, started, watched and killed.

    Args:
        command: without `--out` and `--resume`.
        run: the run directory.
    """

    def __init__(self, command: Sequence[str], run: Path):
        self.run, self.began, self.log = run, time.perf_counter(), run.with_suffix(".log")
        run.mkdir(exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--out", str(run), "--resume"], stdout=log, stderr=log
            )

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def loops(self) -> bool:
        """Whether it has come to its first step."""
        return b" parameters, " in self.log.read_bytes()

    def wait(self, seconds: float) -> bool:
        """Waits so long, and says whether it still runs."""
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            if self.process.poll() is not None:
                return False
            time.sleep(min(0.002, max(ends - time.perf_counter(), 0)))
        return self.process.poll() is None

    def wait_for(self, step: int) -> bool:
        """Waits until so many steps are saved, and says whether it still runs."""
        ends = time.perf_counter() + PATIENCE
        while newest(self.run) < step:
            if not self.wait(0.004):
                return False
            if time.perf_counter() > ends:
                self.kill()
                raise SystemExit(f"stuck for {PATIENCE:g} s before step {step}")
        return True

    def kill(self) -> str:
        """Kills it, and says what it was doing."""
        self.process.kill()
        self.process.wait()
        if any(self.run.glob("checkpoints/.step_*")):
            return "saving"
        return "training" if self.loops else "starting"


def newest(run: Path) -> int:
    steps = checkpoint.folders(run)
    return steps[-1][0] if steps else 0


def broken(run: Path) -> str:
    """What is wrong with a checkpoint that has its final name; nothing, if all is well."""
    for _, folder in checkpoint.folders(run):
        try:
            checkpoint.load_config(folder)
            checkpoint.load_weights(folder)
            checkpoint.load_state(folder)
        except RunError as error:
            return str(error)
    return ""


def differences(one: Path, other: Path) -> list[str]:
    """What is not equal, bit for bit, in two finished runs."""
    found = []
    if (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl")
    folders = [checkpoint.folders(run)[-1] for run in (one, other)]
    if folders[0][0] != folders[1][0]:
        return [*found, f"the last step: {folders[0][0]} and {folders[1][0]}"]
    first, second = (folder for _, folder in folders)
    if (first / checkpoint.WEIGHTS_FILE).read_bytes() != (
        second / checkpoint.WEIGHTS_FILE
    ).read_bytes():
        found.append(checkpoint.WEIGHTS_FILE)
    if not same(checkpoint.load_state(first), checkpoint.load_state(second), but={"timings.jsonl"}):
        found.append(checkpoint.STATE_FILE)
    left = [str(path.relative_to(other)) for path in other.rglob(".*")]
    return [*found, *(f"{name} was left behind" for name in left)]


def same(one: object, other: object, *, but: set[str]) -> bool:
    """Whether two training states are equal, apart from some keys."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        keys = {*one, *other} - but
        return all(k in one and k in other and same(one[k], other[k], but=but) for k in keys)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(same(a, b, but=but) for a, b in pairs)
    return one == other


def undisturbed(command: Sequence[str], run: Path) -> tuple[float, float, int]:
    """Trains without a kill; seconds to the first step, in all, and the number of steps."""
    training, start = Training(command, run), 0.0
    while training.wait(0.01):
        if not start and training.loops:
            start = training.seconds
    if training.process.returncode:
        raise SystemExit(f"the undisturbed training failed: {training.log.read_text()}")
    return start, training.seconds, newest(run)


def torment(
    command: Sequence[str],
    run: Path,
    times: Sequence[Plan],
    *,
    start: float,
    pause: float,
    steps: int,
) -> tuple[list[Kill], str]:
    """Kills a training as planned, then lets it end; says what went wrong, if anything did."""
    kills: list[Kill] = []
    for number, plan in enumerate(times, start=1):
        before = newest(run)
        training = Training(command, run)
        if plan.share is None:
            alive = training.wait(plan.delay * start)
        else:
            alive = training.wait_for(max(int(plan.share * steps), before + 1))
            alive = alive and training.wait(plan.delay * pause)
        if not alive:
            text = training.log.read_text().strip().splitlines()
            code, last = training.process.returncode, text[-1] if text else ""
            return kills, f"training {number} ended by itself, with {code}: {last}"
        seconds = training.seconds
        phase, step = training.kill(), newest(run)
        kills.append(Kill(seconds, phase, step, step - before))
        print(f"kill {number:3}  {phase:8}  after {seconds:5.1f} s  step {step:6}", flush=True)
        if wrong := broken(run):
            return kills, wrong
    last = Training(command, run)
    code = last.process.wait()
    return kills, last.log.read_text() if code else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipe", default="mnist-2d")
    parser.add_argument("--data", default="mnist-sample")
    parser.add_argument("--device", default="cpu", help="as in ae train")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    options = parser.parse_args()
    command = [sys.executable, "-m", "ae_toolkit", "train", options.recipe]
    command += ["--data", options.data, "--device", options.device]
    own = SETTINGS if options.recipe == "mnist-2d" else SETTINGS[2:4]
    for setting in (*own, *options.settings):
        command += ["--set", setting]

    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:
        whole, cut = Path(temporary) / "whole", Path(temporary) / "cut"
        start, seconds, steps = undisturbed(command, whole)
        points = len((whole / "metrics.jsonl").read_text().splitlines()) / 2
        pause = (seconds - start) / max(points, 1)
        print(
            f"undisturbed: {start:.1f} s to the first step of {steps:,}, {seconds:.1f} s in all, "
            f"a checkpoint every {pause:.2f} s",
            flush=True,
        )
        times = plans(options.kills, options.seed)
        kills, wrong = torment(command, cut, times, start=start, pause=pause, steps=steps)
        wrongs = [wrong] if wrong else differences(whole, cut)

    counts = Counter(kill.phase for kill in kills)
    if options.json:
        print(json.dumps([kill._asdict() for kill in kills]))
    print(f"\nkilled while   times   after new checkpoints ({time.perf_counter() - began:.0f} s)")
    for phase in PHASES:
        progress = sum(kill.new > 0 for kill in kills if kill.phase == phase)
        print(f"{phase:12}  {counts[phase]:6}   {progress:6}")
    if wrongs:
        print(f"\nLOST: {'; '.join(wrongs)}")
        raise SystemExit(1)
    print(
        f"\n{len(kills)} kills, {len(kills)} resumes: last checkpoint and metrics.jsonl are those "
        f"of the undisturbed training, bit for bit"
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads are part of what repeats
    main()
