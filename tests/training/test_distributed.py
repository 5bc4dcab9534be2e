"""Several processes train as one: the same numbers, nothing lost when one of them dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from ae_toolkit import UsageError
from ae_toolkit.randomness import NoiseRecorder, Source
from ae_toolkit.recipe import Train
from ae_toolkit.runs import checkpoint
from ae_toolkit.training.distributed import check_batch
from ae_toolkit.training.schedule import Schedule

OFTEN = "train.evaluate_every=0.3334"  #: epochs, so that every fifth step of 15 is logged


def command(
    out: Path, *settings: str, ranks: int = 0, restarts: int = 0, before: Sequence[str] = ()
) -> list[str]:
    """A training of the bundled digits, by itself or by `torchrun`."""
    start = [sys.executable]
    if ranks:
        start += ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
        start += ["--rdzv-endpoint=localhost:0", f"--max-restarts={restarts}"]
    words = ["-m", "ae_toolkit", *before, "train", "mnist-2d", "--data", "mnist-sample", "--quiet"]
    changes = ["train.batch_size=64", "train.precision=fp32", "train.validation=0", *settings]
    return [*start, *words, "--out", str(out), *(w for c in changes for w in ("--set", c))]


@pytest.fixture(autouse=True, scope="module")
def one_thread_each() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def train(out: Path, *settings: str, ranks: int = 1, before: Sequence[str] = ()) -> None:
    """Runs it; ranks are started as a scheduler does, which is faster than by `torchrun`."""
    there = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    there["AE_RANK_TIMEOUT"] = "60"  # a rank does not wait longer for one that has failed
    processes = [
        subprocess.Popen(
            command(out, *settings, before=before),
            env={**os.environ, **there, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(said)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
        return port


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["split"] == "train"]


def last_weights(run: Path) -> bytes:
    return (checkpoint.checkpoints(run)[-1].folder / checkpoint.WEIGHTS_FILE).read_bytes()


def process_of(run: Path, *, rank: int) -> int:
    """The process that is a rank of the training in `run`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
            known = (folder / "environ").read_text().split("\0")
        except OSError:
            continue
        if str(run) in words and f"RANK={rank}" in known:
            return int(folder.name)
    raise AssertionError(f"there is no rank {rank}")


needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds ranks in /proc")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 steps of one process."""
    out = tmp_path_factory.mktemp("ranks") / "alone"
    train(out, OFTEN, "train.epochs=13.4")
    return out


COUNTING = '''
import torch
from ae_toolkit import registry
from ae_toolkit.contracts import flatten
from ae_toolkit.parts.bottleneck import Gaussian


@registry.bottlenecks.register("counting")
class Counting(Gaussian):
    """Keeps a running mean of the features that it has seen."""

    def __init__(self, *, in_shapes, cond_dim, prior, z_dim: int = 2):
        super().__init__(in_shapes=in_shapes, cond_dim=cond_dim, prior=prior, z_dim=z_dim)
        self.register_buffer("seen", torch.zeros(in_shapes[0]))

    def forward(self, h, c, *, num_samples, step):
        if self.training:
            self.seen.lerp_(step.gather(h[0]).mean(0), 0.1)
        return super().forward(h, c, num_samples=num_samples, step=step)
'''


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_statistics_of_two_ranks_are_those_of_one(tmp_path: Path, compiled: str) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    settings = ["bottleneck.name=counting", "train.epochs=0.3", f"train.compile={compiled}"]
    seen = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        train(out, *settings, ranks=ranks, before=["--import", str(tmp_path / "counting.py")])
        point = checkpoint.best(out)
        assert point is not None
        seen.append(checkpoint.load_weights(point.folder)["bottleneck.seen"])
    assert seen[0].abs().max() > 0.01
    assert torch.allclose(*seen, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_have_the_losses_of_one(alone: Path, parallel: str, tmp_path: Path) -> None:
    train(tmp_path / "two", OFTEN, "train.epochs=13.4", f"train.parallel={parallel}", ranks=2)
    mine, theirs = losses(alone), losses(tmp_path / "two")
    assert len(mine) == len(theirs) > 40
    assert theirs == pytest.approx(mine, rel=1e-5)
    assert (tmp_path / "two/figures").is_dir()
    assert list(checkpoint.load_weights(checkpoint.checkpoints(alone)[-1].folder)) == list(
        checkpoint.load_weights(checkpoint.checkpoints(tmp_path / "two")[-1].folder)
    )


@pytest.mark.slow
def test_accumulation_clipping_and_validation_agree_too(tmp_path: Path) -> None:
    settings = ("train.epochs=4", "train.accumulate=2", "train.clip=1", "train.validation=0.3")
    for ranks in (1, 2):
        train(tmp_path / str(ranks), *settings, ranks=ranks)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("1", "2")
    ]
    for one, other in zip(*rows, strict=True):
        assert one.pop("split") == other.pop("split")
        assert other.pop("rates", []) == pytest.approx(one.pop("rates", []), rel=1e-2)
        assert other == pytest.approx(one, rel=1e-3, abs=1e-3)


@needs_proc
@pytest.mark.slow
def test_a_killed_rank_is_started_again_with_the_right_result(tmp_path: Path) -> None:
    settings = ("train.epochs=12", "train.validation=0.05", "train.accumulate=2")
    train(tmp_path / "whole", *settings, ranks=2)
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        command(cut, *settings, ranks=2, restarts=1), stderr=subprocess.PIPE, text=True
    )
    try:
        while len(checkpoint.checkpoints(cut)) < 2:
            assert process.poll() is None, "it ended before it could be disturbed"
            time.sleep(0.02)
        os.kill(process_of(cut, rank=1), signal.SIGKILL)
        _, said = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "resuming from" in said
    assert last_weights(cut) == last_weights(tmp_path / "whole")
    assert losses(cut) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_start_that_is_refused_stays_refused(alone: Path) -> None:
    """What `torchrun` starts anew goes on with its own run only, not with one that was there."""
    done = subprocess.run(
        command(alone, OFTEN, "train.epochs=13.4", ranks=1, restarts=1),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.count("already holds a run: add --resume to go on") == 2
    assert "resuming" not in done.stderr


@pytest.mark.slow
def test_all_ranks_pass_over_a_broken_checkpoint(alone: Path, tmp_path: Path) -> None:
    run = shutil.copytree(alone, tmp_path / "run")
    state = checkpoint.checkpoints(run)[-1].folder / checkpoint.STATE_FILE
    state.write_bytes(state.read_bytes()[:1000])
    words = [*command(run, OFTEN, "train.epochs=13.4", ranks=2), "--resume"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trying the one before") == 1
    assert checkpoint.checkpoints(run)[-1].step == checkpoint.checkpoints(alone)[-1].step


@needs_proc
@pytest.mark.slow
def test_a_stopped_pair_goes_on_alone(tmp_path: Path) -> None:
    """SIGTERM saves on all ranks at the same step; one process takes over, and says so."""
    run, settings = tmp_path / "run", ("train.epochs=200",)
    process = subprocess.Popen(command(run, *settings, ranks=2), stderr=subprocess.PIPE, text=True)
    while not checkpoint.checkpoints(run):
        assert process.poll() is None
        time.sleep(0.05)
    for number in (process_of(run, rank=0), process_of(run, rank=1)):
        os.kill(number, signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert "and saved; go on with" in said
    stopped = checkpoint.checkpoints(run)[-1].step
    resumed = subprocess.Popen(
        [*command(run, *settings), "--resume"], stderr=subprocess.PIPE, text=True
    )
    while checkpoint.checkpoints(run)[-1].step == stopped:
        assert resumed.poll() is None
        time.sleep(0.05)
    resumed.send_signal(signal.SIGTERM)
    _, said = resumed.communicate(timeout=60)
    assert "what began on 2 ranks goes on on 1" in said
    assert resumed.returncode == 143


@pytest.mark.slow
def test_a_rank_that_never_arrives(tmp_path: Path) -> None:
    there = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    there["MASTER_PORT"] = str(free_port())
    done = subprocess.run(
        command(tmp_path / "r"),
        env={**os.environ, **there, "AE_RANK_TIMEOUT": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Error: rank 0 of 2 waited 2 s at localhost" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()


def test_batches_that_cannot_be_shared() -> None:
    with pytest.raises(
        UsageError, match=r"batch_size is 10, which 4 ranks cannot share evenly: try 8"
    ):
        check_batch(Train(batch_size=10), 4)
    with pytest.raises(UsageError, match="4 ranks cannot share 3 examples"):
        Schedule.of(Train(), 3, num_ranks=4)
    assert Schedule.of(Train(batch_size=64), 37, num_ranks=4).batch_size == 36


def test_noise_is_that_of_the_global_batch() -> None:
    whole = NoiseRecorder(Source(1, "train"), lambda step: step.randn((6, 2)) + step.rand((6, 2)))
    parts = [
        NoiseRecorder(
            Source(1, "train"),
            lambda step: step.randn((2, 2)) + step.rand((2, 2)),
            rank=rank,
            num_ranks=3,
        )
        for rank in range(3)
    ]
    for i, noise in enumerate(whole.draw(5)):
        assert torch.equal(noise, torch.cat([part.draw(5)[i] for part in parts]))


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_gpus_have_the_losses_of_one(parallel: str, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    settings = (OFTEN, "train.epochs=2", f"train.parallel={parallel}")
    train(tmp_path / "one", *settings)
    train(tmp_path / "two", *settings, ranks=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
