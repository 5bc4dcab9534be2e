"""Trainings that are killed, stopped, cut, and starved of room: nothing is lost, and it is said."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, small
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from ae_toolkit import RunError, UsageError, fit, load
from ae_toolkit.data.examples import Examples
from ae_toolkit.errors import Interrupted
from ae_toolkit.registry import datasets, encoders
from ae_toolkit.runs import checkpoint, directory, lock
from ae_toolkit.runs.lock import locked
from ae_toolkit.training import losses, memory, state, trainer
from ae_toolkit.training.compilation import CACHE_VARIABLE, use_own_cache
from ae_toolkit.training.engine import ENGINE_FILE, Engine

#: `small()` on the command line, with many steps.
LONG = (
    "train", "mnist-2d", "--data", "mnist-sample", "--quiet", "--device", "cpu",
    "--set", "encoder.hidden=[32]", "--set", "decoder.hidden=[32]", "--set", "train.compile=off",
    "--set", "train.batch_size=64",
)  # fmt: skip


def last_weights(run: Path) -> bytes:
    return (checkpoint.checkpoints(run)[-1].folder / checkpoint.WEIGHTS_FILE).read_bytes()


def start(*arguments: object, limit: int = 0, **changes: str) -> subprocess.Popen[str]:
    """`ae`, in another process, which may write files of so many bytes at most."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "ae_toolkit", *map(str, arguments)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **changes},
        preexec_fn=limited if limit else None,
    )  # fmt: skip


def end(process: subprocess.Popen[str], code: int, *, seconds: float = 120) -> str:
    """Waits for it, and returns what it said."""
    _, said = process.communicate(timeout=seconds)
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said


def wait_for(there: Callable[[], object], *, seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < ends
        time.sleep(0.005)


@pytest.fixture
def short(run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, whose last checkpoint lacks what it would lead to."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    return copy


# Kills.


@pytest.mark.slow
def test_killed_at_random_moments_and_nothing_is_lost() -> None:
    """What `scripts/kill.py` does fifty times."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/kill.py", "--kills", "3", "--seed", "1",
         "--set", "train.epochs=12"],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills, 3 resumes" in done.stdout and "bit for bit" in done.stdout


def test_a_training_killed_at_its_start_may_be_resumed(tmp_path: Path, ae: Any) -> None:
    (tmp_path / "r/.config.json.abcd1234").mkdir(parents=True)
    run = fit(small(train__epochs=1), tmp_path / "r", resume=True, progress=False)
    assert not list(run.rglob(".*")), "what was half-written was left"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    assert "holds no run to resume" in ae(*LONG, "--out", "other", "--resume", code=2).output


def test_what_a_part_counts_is_the_same_after_a_resume(tmp_path: Path) -> None:
    """The rehearsal of a resumed training moves no buffers."""

    @encoders.register("normed")
    class Normed(torch.nn.Module):
        def __init__(self, *, in_shape, num_classes, cond_dim):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(in_shape[0])
            self.layer = torch.nn.Linear(in_shape[0] * in_shape[1] * in_shape[2], 8)
            self.out_shapes = ((8,),)

        def forward(self, x, c, mask):
            return (self.layer(self.norm(x).flatten(1)),)

    recipe = small(encoder={"name": "normed"}, train__epochs=2, train__compile="off")
    whole = fit(recipe, tmp_path / "whole", progress=False)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(checkpoint.checkpoints(cut)[-1].folder)
    fit(recipe, cut, resume=True, progress=False)
    assert last_weights(cut) == last_weights(whole)


@pytest.mark.parametrize("kind", ["new", "open to all", "a link", "chosen"])
def test_what_is_compiled_lies_where_nobody_else_may_write(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(
        CACHE_VARIABLE, str(tmp_path / "mine") if kind == "chosen" else default_cache_dir()
    )
    place = tmp_path / "ae-toolkit/compiled"
    if kind == "open to all":
        place.mkdir(parents=True)
        place.chmod(0o777)
    elif kind == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        place.parent.mkdir()
        place.symlink_to(tmp_path / "theirs")
    use_own_cache()
    used = Path(os.environ[CACHE_VARIABLE])
    if kind == "chosen":
        assert used == tmp_path / "mine"
        return
    assert (used == place) == (kind == "new")
    assert used.stat().st_mode & 0o777 == 0o700 and used.owner() == Path.home().owner()


# Checkpoints that are broken.


@pytest.mark.parametrize(
    "name", [checkpoint.STATE_FILE, checkpoint.WEIGHTS_FILE, checkpoint.CONFIG_FILE]
)
def test_a_checkpoint_cut_in_half_is_passed_over(
    name: str, short: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    last = checkpoint.checkpoints(short)[-1].folder
    (last / name).write_bytes((last / name).read_bytes()[: (last / name).stat().st_size // 2])
    fit(small(), short, resume=True, progress=False, keep=1)
    said = capfd.readouterr().err
    assert str(last / name) in said and "trying the one before" in said
    assert last_weights(short) == last_weights(run)
    assert not list(short.rglob(".*")), "what was broken was left"
    load(short)


def test_a_broken_checkpoint_never_pushes_out_good_ones(short: Path) -> None:
    """One that was saved later than any that will come again."""
    last = checkpoint.checkpoints(short)[-1].folder
    later = last.with_name("step_10000000")  # sorted by number, not by name
    shutil.copytree(last, later)
    shutil.rmtree(last)
    (later / checkpoint.WEIGHTS_FILE).write_bytes(b"cut")
    fit(small(), short, resume=True, progress=False, keep=1)
    assert checkpoint.checkpoints(short)[-1].folder == last


def test_all_checkpoints_broken(short: Path, ae: Any) -> None:
    for point in checkpoint.checkpoints(short):
        (point.folder / checkpoint.STATE_FILE).write_bytes(b"PK")
    before = sorted(short.rglob("*"))
    said = ae("train", "mnist-2d", "--out", short, "--resume", "--quiet", code=1).output
    assert "no checkpoint can be resumed from" in said and "is cut short or broken" in said
    assert sorted(short.rglob("*")) == before


@pytest.mark.parametrize("lost", ["learner", "first"])
def test_a_state_of_another_version_is_named(lost: str, short: Path, ae: Any) -> None:
    for point in checkpoint.checkpoints(short):
        state = checkpoint.load_state(point.folder)
        (state if lost in state else state["learner"]).pop(lost)
        torch.save(state, point.folder / checkpoint.STATE_FILE)
        checkpoint.note_checksums(point.folder)
    said = ae("train", "mnist-2d", "--out", short, "--resume", "--quiet", code=1).output
    assert f"{lost}' is missing" in said and "that began this run, or begin another" in said


def rewritten(short: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """All states of a run as somebody would write them who means harm: the checksums fit."""
    for point in checkpoint.checkpoints(short):
        state = checkpoint.load_state(point.folder)
        change(state)
        torch.save(state, point.folder / checkpoint.STATE_FILE)
        checkpoint.note_checksums(point.folder)


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "another file": lambda s: s["log_size"].update({"../victim": 0}),
    "its text": lambda s: s["log_waiting"].update({"../victim": "rm -r *"}),
    "no log": lambda s: s["log_size"].pop("metrics.jsonl"),
    "a negative size": lambda s: s["log_size"].update({"metrics.jsonl": -1}),
    "a negative step": lambda s: s.update(step=-5),
    "a later step": lambda s: s.update(step=10**6),
    "half a step": lambda s: s.update(step=1.5),
    "no watch": lambda s: s.update(watch=(float("nan"), 0)),
    "a stale watch": lambda s: s.update(watch=(1.0, "x")),
    "another key": lambda s: s.update(more=1),
    "data of no number": lambda s: s["data"].update(num="many"),
    "no tensors": lambda s: s["learner"].update(first=[1, 2]),
    "fewer tensors": lambda s: s["learner"]["second"].pop(),
    "a stretched tensor": lambda s: s["learner"]["average"].__setitem__(0, torch.zeros(1, 1)),
    "another type": lambda s: s["learner"].update(first=[t.long() for t in s["learner"]["first"]]),
    "a strange weight": lambda s: s["learner"]["weights"].update(more=torch.zeros(1)),
    "no number": lambda s: s["learner"]["weights"]["encoder.layers.0.bias"].fill_(float("nan")),
    "a long history": lambda s: s.update(history=torch.zeros(10**6, 4)),
    "a surrogate": lambda s: s["log_waiting"].update({"metrics.jsonl": "\udcff"}),
    "a negative moment": lambda s: s["learner"]["second"][0].fill_(-1),
    "a step before": lambda s: s.update(step=s["step"] - 1),
    "a history of nothing": lambda s: s.update(history=torch.zeros(0, 4, device="meta")),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_state_that_means_harm_does_none(kind: str, short: Path, ae: Any) -> None:
    victim, outside = short / "../victim", short.parent / "victim"
    outside.write_text("mine")
    rewritten(short, HOSTILE[kind])
    before = sorted(short.parent.rglob("*"))
    said = ae("train", "mnist-2d", "--out", short, "--resume", "--quiet", code=1).output
    assert "begin another" in said and len(said) < 1500
    assert victim.read_text() == "mine" and sorted(short.parent.rglob("*")) == before


@pytest.mark.parametrize("what", ["checkpoints", "figures"])
def test_folders_of_a_run_are_its_own(what: str, short: Path, tmp_path: Path, ae: Any) -> None:
    """A link in a stranger's run would let a training remove what lies elsewhere."""
    mine = tmp_path / "mine"
    shutil.copytree(short / what, mine)
    shutil.rmtree(short / what)
    (short / what).symlink_to(mine)
    before = sorted(mine.rglob("*"))
    said = ae("train", "mnist-2d", "--out", short, "--resume", "--quiet", code=2).output
    assert f"{short / what}: must be a folder of the run itself" in said
    assert sorted(mine.rglob("*")) == before


def test_sweeping_spares_what_a_training_did_not_leave(short: Path) -> None:
    for name in (".keep.json.d", "figures/.step_precious", "checkpoints/.step_0000001.ab12cd_9"):
        (short / name).mkdir(parents=True)
    directory.remove_temporaries(short)
    assert (short / ".keep.json.d").exists() and (short / "figures/.step_precious").exists()
    assert not (short / "checkpoints/.step_0000001.ab12cd_9").exists()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_logs_are_files_of_the_run(kind: str, short: Path, tmp_path: Path, ae: Any) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n" * 10_000)
    log = short / "metrics.jsonl"
    log.unlink()
    log.symlink_to(victim) if kind == "link" else os.mkfifo(log)
    said = ae("train", "mnist-2d", "--out", short, "--resume", "--quiet", code=1).output
    assert f"{log}: cannot be written, it is " in said
    assert victim.read_text() == "mine\n" * 10_000


@pytest.mark.parametrize(
    "name", [checkpoint.STATE_FILE, checkpoint.WEIGHTS_FILE, checkpoint.CONFIG_FILE]
)
def test_a_checkpoint_with_a_flipped_bit_is_passed_over(
    name: str, short: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint.checkpoints(short)[-1].folder / name
    content = bytearray(path.read_bytes())
    content[
        content.index(b'"lr"') + 7 if name == checkpoint.CONFIG_FILE else len(content) // 2
    ] ^= 1
    path.write_bytes(content)
    fit(small(), short, resume=True, progress=False)
    said = capfd.readouterr().err
    assert str(path) in said and "trying the one before" in said
    assert last_weights(short) == last_weights(run)


def test_a_run_whose_config_was_damaged_is_not_resumed(short: Path, ae: Any) -> None:
    config = short / checkpoint.CONFIG_FILE
    config.write_text(config.read_text().replace('"lr": 0.005', '"lr": 0.006'))
    said = ae("train", "mnist-2d", "--out", short, "--resume", "--quiet", code=1).output
    assert f"{config}: has changed since it was written" in said


@pytest.mark.parametrize("text", ["{", '{"threads": 1000000}', "[" * 100_000, "changed"])
def test_an_engine_that_is_no_more_known_is_said(
    text: str, short: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = short / ENGINE_FILE
    known = path.read_text()
    path.write_text(known.replace('"bf16": false', '"bf16": true') if text == "changed" else text)
    before = torch.get_num_threads()
    assert Engine.written(short) is None
    assert f"{path}: is broken" in capfd.readouterr().err
    assert torch.get_num_threads() == before


# Disks.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_and_has_room_again(
    run: Path,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Said once, made up for, and the same in the end."""
    looks: list[int] = []
    original = losses.validate

    def validate(*arguments: Any) -> Any:
        looks.append(1)
        if len(looks) == 1:
            with (disk / "filler").open("wb", 0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    pass
        if len(looks) == 4:
            (disk / "filler").unlink()
        return original(*arguments)

    monkeypatch.setattr(losses, "validate", validate)
    there = fit(small(), disk / "r", progress=False, keep=1)
    said = capfd.readouterr().err
    for what in ("checkpoints/step_0000014", "metrics.jsonl"):
        assert said.count(f"{what}: cannot be written, No space left on device; the training") == 1
    assert "checkpoints can be written again" in said and "logs can be written again" in said
    assert (there / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert last_weights(there) == last_weights(run)


@pytest.mark.slow
def test_a_disk_that_stays_full(tmp_path: Path) -> None:
    """It goes on, says so once, ends with 1, and the last good checkpoint can be used."""
    out = tmp_path / "r"
    fit(small(train__epochs=1), out, progress=False)
    # The same run, but longer.
    config = checkpoint.config_json(small(train__epochs=3))
    (out / checkpoint.CONFIG_FILE).write_text(config)
    good = checkpoint.checkpoints(out)[-1].folder
    process = start("train", "mnist-2d", "--out", out, "--resume", "--quiet", limit=100_000)
    said = end(process, 1)
    assert said.count("cannot be written, File too large; the training goes on") == 1
    assert "the last checkpoint could not be written, the one before stays: make room" in said
    assert load(out).folder == good
    assert not list(out.glob("checkpoints/.*"))


@pytest.mark.slow
def test_a_full_disk_from_the_beginning(tmp_path: Path) -> None:
    process = start(*LONG, "--set", "train.epochs=2", "--out", tmp_path / "r", limit=100_000)
    assert "could not be written, and there is no other: make room" in end(process, 1)


def test_a_folder_that_cannot_be_written(tmp_path: Path, ae: Any) -> None:
    (tmp_path / "file").touch()
    said = ae(*LONG, "--out", "file/r", code=1).output
    assert "file/r: cannot be written, Not a directory" in said
    (tmp_path / "r").mkdir()
    (tmp_path / "r/checkpoints").touch()
    assert "already holds a run" in ae(*LONG, "--out", "r", code=2).output
    (tmp_path / "s/metrics.jsonl").mkdir(parents=True)
    said = ae(*LONG, "--out", "s", code=1).output
    assert "s/metrics.jsonl: cannot be written, Is a directory" in said


def test_a_disk_that_may_only_be_read(short: Path, ae: Any) -> None:
    bind = ["mount", "--bind", str(short), str(short)]
    if not shutil.which("mount") or subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("needs to mount a folder")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(short)], check=True)
        said = ae("train", "mnist-2d", "--out", short, "--resume", "--quiet", code=1).output
        assert "cannot be written, Read-only file system" in said
    finally:
        subprocess.run(["umount", "-l", str(short)], check=True)


# Who may go on, and with what.


@pytest.mark.slow
def test_two_trainings_in_one_folder(tmp_path: Path, ae: Any) -> None:
    with locked(tmp_path / "r"):
        said = ae(*LONG, "--out", "r", code=2).output
        assert "r is being trained by another process: wait for it, stop it, or choose" in said
        assert (tmp_path / "r").is_dir(), "whoever is refused removes nothing"


def test_a_lock_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path / "a" / "run"):
        assert lock.in_training(tmp_path / "a" / "run")
    assert not (tmp_path / "a").exists() and not lock.in_training(tmp_path / "a" / "run")
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        (tmp_path / "run/config.json").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_the_system_frees_the_lock_of_a_training_that_was_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from ae_toolkit.runs.lock import locked\n"
        "with locked(Path('run')): print('locked', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    assert lock.in_training(tmp_path / "run")
    process.kill()
    process.communicate()
    assert not lock.in_training(tmp_path / "run")
    with locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_where_nobody_may_write_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with (
        pytest.raises(RunError, match="run: cannot be written, Permission denied"),
        locked(tmp_path / "run"),
    ):
        pass


def test_another_recipe_is_told_apart(short: Path, ae: Any) -> None:
    said = ae("train", "mnist-vae", "--out", short, "--resume", code=2).output
    assert "holds another run: its name is 'mnist-2d', not 'mnist-vae', its " in said
    assert "more differ)" in said
    changes = ("--set", "train.lr=0.5", "--set", "bottleneck.z_dim=3")
    said = ae("train", "mnist-2d", *changes, "--out", short, "--resume", code=2).output
    assert "its bottleneck.z_dim is 2, not 3, its train.lr is 0.005, not 0.5\n" in said


@pytest.mark.parametrize("what", ["one example", "the number"])
def test_data_that_changed_is_noticed(what: str, tmp_path: Path, ae: Any) -> None:
    changed: list[bool] = []

    @datasets.register("moving")
    def moving(*, modality: Any, split: str) -> Examples:
        """Data that change."""
        num = 299 if changed and what == "the number" else 300
        y = torch.zeros(num, 1, 28, 28, dtype=torch.uint8)
        if changed and what == "one example":
            y[157, 0, 3, 3] = 1
        return Examples(y, None, {}, [str(i) for i in range(num)])

    recipe = small(data={"name": "moving"}, train__epochs=1)
    fit(recipe, tmp_path / "r", progress=False)
    changed.append(True)
    said = ae("train", "mnist-2d", "--out", "r", "--resume", code=1).output
    now = 300 if what == "one example" else 299
    assert f"the data has changed since this run began (300 examples then, {now} now)" in said


def test_as_many_checkpoints_stay_as_are_asked_for(tmp_path: Path, ae: Any) -> None:
    settings = ("--set", "train.epochs=5", "--keep", "3", "--out", "r")
    ae(*LONG, *settings)
    steps = [point.step for point in checkpoint.checkpoints(tmp_path / "r")]
    best = checkpoint.best(tmp_path / "r")
    assert steps[-3:] == [42, 56, 70] and best and {*steps} == {*steps[-3:], best.step}
    with pytest.raises(UsageError, match="at least 1 checkpoint must be kept, not 0"):
        fit(small(), tmp_path / "s", keep=0, progress=False)


# Signals.


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["start", "trial", "step", "validation", "saving"])
def test_stopped_anywhere(
    where: str, number: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One signal: whatever is being done is finished and saved, or nothing had begun."""
    places = {
        "start": (state, "fingerprint"),
        "trial": (trainer, "choose_step"),
        "step": (trainer, "take_step"),
        "validation": (losses, "validate"),
        "saving": (checkpoint, "pack"),
    }
    owner, name = places[where]
    original = getattr(owner, name)

    def hit(*arguments: Any, **named: Any) -> Any:
        monkeypatch.undo()
        os.kill(os.getpid(), number)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, hit)
    recipe = small() if where == "trial" else small(train__compile="off")
    out = tmp_path / "r"
    with pytest.raises(Interrupted) as caught:
        fit(recipe, out, progress=False)
    assert caught.value.exit_code == 128 + number
    if where in ("start", "trial"):
        assert str(caught.value) == "Stopped before the first step: nothing was saved"
        assert not out.exists()
        fit(recipe, out, progress=False)
    else:
        assert f"and saved; go on with: ae train mnist-2d --out {out} --resume" in str(caught.value)
        fit(recipe, out, resume=True, progress=False)
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    assert last_weights(out) == last_weights(run)
    assert (out / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(
    number: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the second checkpoint is saved because of the first signal."""
    original, calls = checkpoint.pack, []

    def pack(*arguments: Any) -> bytes:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(checkpoint, "pack", pack)
    out = tmp_path / "r"
    with pytest.raises(Interrupted, match="Stopped at once, the last checkpoint stays") as caught:
        fit(small(train__compile="off"), out, progress=False)
    assert caught.value.exit_code == 128 + number
    assert len(checkpoint.checkpoints(out)) == 1 and not list(out.glob("checkpoints/.*"))
    fit(small(train__compile="off"), out, resume=True, progress=False)
    assert last_weights(out) == last_weights(run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_on_the_command_line(number: int, tmp_path: Path) -> None:
    out = tmp_path / "r"
    process = start(*LONG, "--set", "train.epochs=100000", "--out", out)
    wait_for(lambda: checkpoint.checkpoints(out) or process.poll() is not None)
    process.send_signal(number)
    said = end(process, 128 + number)
    assert "Stopped at step " in said and "Error" not in said
    assert f"and saved; go on with: ae train mnist-2d --out {out} --resume" in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_starts_on_the_command_line(number: int, tmp_path: Path) -> None:
    out = tmp_path / "r"
    process = start(*LONG, "--out", out)
    wait_for(out.exists)
    process.send_signal(number)
    assert "Stopped before the first step: nothing was saved" in end(process, 128 + number)


# Memory.


def test_weights_that_do_not_fit(tmp_path: Path, ae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 10 << 30)
    said = ae(*LONG, "--set", "encoder.hidden=[1000000]", "--out", "r", code=1).output
    assert "does not fit in memory: make its parts smaller, such as 'weight' of a Lin" in said
    assert not (tmp_path / "r").exists()


def test_a_batch_that_does_not_fit(
    tmp_path: Path, ae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 150 << 20)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    many = ("--set", "objective.name=iwae", "--set", "objective.num_samples=1000")
    said = ae(*LONG, *many, "--out", "r", code=1).output
    assert "memory does not suffice for batches of 64 examples: try --set" in said
    assert "train.batch_size=32 --set train.accumulate=2, which learns from as many" in said
    assert not (tmp_path / "r").exists()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_that_runs_out_in_the_loop(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = trainer.take_step, []

    def take(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 20:
            raise error
        return original(*arguments)

    monkeypatch.setattr(trainer, "take_step", take)
    recipe = small(train__accumulate=2, train__batch_size=30, train__compile="off")
    with pytest.raises(
        RunError, match=r"of 30 examples: try --set train.batch_size=15 .*accumulate=4"
    ):
        fit(recipe, tmp_path / "r", progress=False)
    assert checkpoint.checkpoints(tmp_path / "r")


def test_what_pytorch_says_of_full_memory_is_known() -> None:
    with (
        pytest.raises(RunError, match="too much: less"),
        memory.catch_out_of_memory("too much", "less"),
    ):
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="shape"), memory.catch_out_of_memory("too much", "less"):
        torch.empty(2) @ torch.empty(3, 4)
    size = memory.free_bytes()
    assert size is None or 1 << 20 < size < 1 << 50
