"""Seeing what a training does: trackers, codes that collapse, estimates, runs, the profiler."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import small as four_epochs

from ae_toolkit import Autoencoder, Recipe, UsageError, console, fit, registry
from ae_toolkit.data.examples import load_data, train_test_split
from ae_toolkit.errors import Interrupted
from ae_toolkit.inference.evaluate import active_units
from ae_toolkit.parts.objective import ELBO, IWAE
from ae_toolkit.randomness import Source
from ae_toolkit.runs import checkpoint
from ae_toolkit.runs.history import differing, find, read
from ae_toolkit.runs.lock import locked
from ae_toolkit.training.callbacks.collapse import CollapseWarning
from ae_toolkit.training.callbacks.profiler import (
    RECORDED_STEPS,
    SKIPPED_STEPS,
    TRACE_FILE,
    WARMUP_STEPS,
)
from ae_toolkit.training.callbacks.trackers import TensorBoard, Trackers
from ae_toolkit.training.distributed import Ranks
from ae_toolkit.training.dry_run import estimate
from ae_toolkit.training.optimizer import EMAOptimizer, StepCoefficients
from ae_toolkit.training.validation import LatentUsage, validate


def small(**changes: object) -> Recipe:
    """Two epochs of 14 steps."""
    return four_epochs(**{"train__epochs": 2, **changes})


def rows(run: Path, split: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Has a training be asked to stop, as by Ctrl-C, after so many steps."""
    original, calls = EMAOptimizer.step, []

    def update(self: EMAOptimizer, pace: StepCoefficients) -> None:
        original(self, pace)
        calls.append(1)
        if len(calls) == steps:
            os.kill(os.getpid(), 15)

    monkeypatch.setattr(EMAOptimizer, "step", update)


# The terminal.

#: A training as `console` sees it, in little.
WORK = """
import sys, time
from ae_toolkit import console
with console.Bar("Reading some", shown="quiet" not in sys.argv) as bar:
    with console.Bar("reading files", total=9, unit="files") as inner:
        for _ in range(9):
            inner.advance()
    text = "loss 31.58 (distortion 25.53, rate 6.05)"
    for step in (1, 2, 3):
        time.sleep(0.3)
        bar.update(step, total=4, title="epoch 1/2", text=text)
        bar.log(f"a line after step {step}")
    console.log("a warning")
    print("a stranger's line", file=sys.stderr)
for _ in console.track([1, 2], "evaluating", shown="quiet" not in sys.argv):
    pass
"""


def on_terminal(*words: str, columns: int = 80, **changes: str) -> str:
    """What `WORK` prints on a terminal."""
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), **changes}
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, *words], stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    said = b""
    with suppress(OSError):  # a terminal that nobody writes to any more
        while some := os.read(ours, 1 << 16):
            said += some
    os.close(ours)
    assert process.wait() == 0, said
    return said.decode()


@pytest.mark.parametrize("columns", [80, 40, 12])
def test_a_bar_on_a_terminal(columns: int) -> None:
    said = on_terminal(columns=columns)
    assert "\x1b[36m" in said and "━" in said
    for line in ("a line after step 3", "a warning", "a stranger's line"):
        assert line in said.replace("\r\n", " " if columns < 20 else "\n")
    shown = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", said)
    assert max(len(line) for line in re.split(r"[\r\n]", shown)) <= max(columns, 19)
    if columns == 80:
        assert "Reading some" in shown and "evaluating" not in shown, "that was over at once"
        assert re.search(r"epoch 1/2 [━╸╺]+ +75% \d s left", shown)
        assert "loss 31.58 (distortion 25.53, rate 6.05)" in shown


def test_no_colours_where_none_are_wanted() -> None:
    said = on_terminal(NO_COLOR="1")
    assert "━" in said and not re.search(r"\x1b\[[\d;]*[34]\d[;m]", said)


def test_plain_lines_where_there_is_no_terminal() -> None:
    for said in (
        on_terminal(TERM="dumb").replace("\r\n", "\n"),
        subprocess.run(
            [sys.executable, "-c", WORK], capture_output=True, text=True, check=True,
            env={**os.environ, "FORCE_COLOR": "1"},
        ).stderr,
    ):  # fmt: skip
        lines = [f"a line after step {step}" for step in (1, 2, 3)]
        assert said.splitlines() == ["Reading some …", *lines, "a warning", "a stranger's line"]


def test_quiet_work_says_only_what_went_wrong() -> None:
    assert on_terminal("quiet").splitlines() == ["a warning", "a stranger's line"]


def test_long_work_says_how_far_it_is_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    for _ in console.track([1, 2], "reading files", unit="files"):
        pass
    said = capfd.readouterr().err
    assert said == "reading files, 1 of 2 files, 0 s left\nreading files, 2 of 2 files, 0 s left\n"


def test_the_first_sentence_waits_for_nothing_heavy() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"  # whoever imports it fails
        "from ae_toolkit.cli.app import main; main(['train', 'mnist-2d'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and done.stderr.startswith("Starting to train mnist-2d …\n")
    assert "rich" not in done.stderr.partition("Traceback")[0]


def test_a_training_says_what_it_does_and_what_comes_next(ae) -> None:
    words = ("train", "mnist-2d", "--data", "mnist-sample", "--set", "train.epochs=1")
    sizes = ("--set", "encoder.hidden=[8]", "--set", "decoder.hidden=[8]", "--out", "a run")
    said = ae(*words, *sizes)
    first, reading, *_, last = said.stderr.splitlines()
    assert first == "Starting to train mnist-2d …" and reading == "Reading mnist-sample …"
    number = r"\d[\d.]*"
    parts = rf"{number} \(distortion {number}, rate {number}\)"
    assert re.search(rf"^epoch 1/1: validation {parts}, training {number}$", said.stderr, re.M)
    assert re.match(rf"a run: validation loss {parts}, best checkpoint at step \d+, ", said.stdout)
    assert last == "Next: ae evaluate 'a run'"
    quiet = ae(*words, *sizes[:-1], "b", "--quiet")
    assert not quiet.stderr and quiet.stdout.startswith("b: validation loss ")


# Trackers.


class Told:
    """A tracker that keeps what it is told."""

    made: list[Told]

    def __init__(self, *, run: Path, settings: dict[str, Any]):
        self.settings, self.numbers, self.figures, self.closed = settings, {}, [], False
        self.made.append(self)

    def log(self, step, numbers):
        self.numbers[step] = dict(numbers)

    def figure(self, step, path):
        self.figures.append(path)

    def close(self):
        self.closed = True


def test_a_tracker_of_ones_own_is_told_everything(run: Path, tmp_path: Path) -> None:
    Told.made = []
    registry.trackers.register("told")(Told)
    again = fit(four_epochs(), tmp_path / "r", progress=False, track=["told", "told"], profile=True)
    (told,) = Told.made
    assert told.closed and told.figures[-1].is_file()
    assert told.settings["train"]["lr"] == 5e-3
    last = rows(again, "validation")[-1]
    seen = told.numbers[last["step"]]
    for name in ("loss", "distortion", "rate", "active_units"):
        assert seen[f"validation/{name}"] == last[name]
    assert [seen["rates/00"], seen["rates/01"]] == last["rates"]
    assert seen["train/loss"] and seen["pace/examples_per_second"]
    # Whoever looks on changes nothing.
    assert (again / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    mine, its = (
        checkpoint.checkpoints(r)[-1].folder / checkpoint.WEIGHTS_FILE for r in (run, again)
    )
    assert mine.read_bytes() == its.read_bytes()


def test_a_failing_tracker_ends_nothing_and_is_spoken_of_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Down(Told):
        def log(self, step, numbers):
            raise ConnectionError("no route to host")

    Told.made = []
    registry.trackers.register("down")(Down)
    registry.trackers.register("told")(Told)
    fit(small(), tmp_path / "r", progress=False, track=["down", "told"])
    said = capfd.readouterr().err
    assert said.count("down fails and is told nothing more") == said.count("no route to host") == 1
    assert len(Told.made[1].numbers) == len(rows(tmp_path / "r", "train"))


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_missing_extra_is_missed_before_any_work(
    ae, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for more in ([], ["--dry-run"]):
        said = ae("train", "mnist-2d", "--data", "mnist-sample", "--track", name, *more, code=2)
        assert f"pip install 'ae-toolkit[{name}]'" in said.output
    assert not Path("runs").exists()


def test_an_unknown_tracker(ae) -> None:
    said = ae("train", "mnist-2d", "--data", "mnist-sample", "--track", "tensorbord", code=2)
    assert "did you mean 'tensorboard'?" in said.output and not Path("runs").exists()


def events(folder: Path) -> Any:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return reader.EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()


def test_tensorboard_opens_its_files_and_a_resumed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra: pip install -e '.[tensorboard]'")
    run = tmp_path / "r"
    stop_after(monkeypatch, 20)
    with pytest.raises(Interrupted):
        fit(small(), run, progress=False, track=["tensorboard"])
    monkeypatch.undo()
    fit(small(), run, progress=False, track=["tensorboard"], resume=True)
    found = events(run / "tensorboard")
    for split in ("train", "validation"):
        assert [
            (event.step, pytest.approx(event.value)) for event in found.Scalars(f"{split}/loss")
        ] == [(row["step"], row["loss"]) for row in rows(run, split)]
    assert "rates/01" in found.Tags()["scalars"]
    drawn = found.Images("figure")[-1]
    assert drawn.encoded_image_string[:4] == b"\x89PNG"
    assert drawn.step == rows(run, "train")[-1]["step"]


def test_tensorboard_takes_back_what_a_killed_run_logged_too_much(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra: pip install -e '.[tensorboard]'")
    for steps in (range(1, 6), range(3, 8)):
        tracker = TensorBoard(run=tmp_path, settings={})
        for step in steps:
            tracker.log(step, {"loss": float(step)})
        tracker.close()
    assert [e.step for e in events(tmp_path / "tensorboard").Scalars("loss")] == [*range(1, 8)]


class Wandb:
    """Stands in for the module `wandb`."""

    def __init__(self, *, known: bool = True):
        self.known, self.runs = known, []

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt, "a training must not ask"
        return self.known

    def init(self, **options: Any) -> Any:
        logged: list[Any] = []
        run = SimpleNamespace(options=options, logged=logged, finished=False, url=None)
        run.log = lambda numbers, *, step: logged.append((step, numbers))
        run.finish = lambda: setattr(run, "finished", True)
        self.runs.append(run)
        return run

    Settings = Image = staticmethod(lambda *path, **options: path or options)


def test_weights_and_biases_goes_on_under_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for resume in (False, True):
        with monkeypatch.context() as patch:
            if not resume:
                stop_after(patch, 20)
            try:
                fit(small(), tmp_path / "r", progress=False, track=["wandb"], resume=resume)
            except Interrupted:
                assert not resume
    first, second = fake.runs
    assert first.options["id"] == second.options["id"] and second.options["resume"] == "allow"
    assert first.options["config"]["train"]["batch_size"] == 64
    assert first.options["name"] == "r" and Path(first.options["dir"]) == tmp_path / "r"
    assert first.finished and second.finished
    steps = [step for run in fake.runs for step, numbers in run.logged if "train/loss" in numbers]
    assert steps == [row["step"] for row in rows(tmp_path / "r", "train")]
    assert any("figure" in numbers for _, numbers in second.logged)


def test_weights_and_biases_needs_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", Wandb(known=False))
    with pytest.raises(UsageError, match="call 'wandb login', or set WANDB_MODE=offline"):
        fit(small(), tmp_path / "r", progress=False, track=["wandb"])
    assert not (tmp_path / "r").exists()


def test_weights_and_biases_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra: pip install -e '.[wandb]'")
    code = (
        "from pathlib import Path; from ae_toolkit.training.callbacks.trackers import WandB\n"
        "import matplotlib.image, numpy\n"
        "matplotlib.image.imsave('a.png', numpy.zeros((4, 4)))\n"
        "t = WandB(run=Path('run'), settings={'name': 'some'})\n"
        "t.log(1, {'train/loss': 2.0}); t.figure(1, Path('a.png')); t.close()"
    )
    (tmp_path / "run").mkdir()
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, env={**os.environ, **OFFLINE}
    )
    (kept,) = (tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb")
    assert kept.stem == f"run-{(tmp_path / 'run/wandb/id.txt').read_text()}"
    assert b"train/loss" in kept.read_bytes()


OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}


# Codes.


@pytest.mark.parametrize(
    ("objective", "rates", "progress", "sentence"),
    [
        (ELBO(), [0.0, 0.001], 0.5, "each of its 2 numbers carries less than 0.01 nats"),
        (IWAE(), [0.0, 0.001], 0.5, "try a weaker decoder"),
        (ELBO(beta=4), [0.0, 0.0], 1.0, "try a smaller objective.beta or objective.free_bits"),
        (ELBO(), [3.0] + 9 * [0.0], 0.5, "9 of its 10 numbers carry less than 0.01 nats"),
        (ELBO(warmup=0.3), [0.0, 0.0], 0.5, "has collapsed"),
        (ELBO(warmup=0.5, cycles=2), [0.0, 0.0], 0.9, "has collapsed"),
        (ELBO(), [0.002], 0.5, "it carries less than 0.01 nats"),  # a learned prior's one column
        (ELBO(), [3.0, 0.0, 0.0, 0.0], 0.5, ""),  # some are idle in every good model
        (ELBO(), [14.0], 0.5, ""),
        (ELBO(), [0.0, 0.0], 0.1, ""),  # too early
        (ELBO(warmup=0.8), [0.0, 0.0], 0.5, ""),  # warming up
        (ELBO(warmup=0.5, cycles=2), [0.0, 0.0], 0.55, ""),
        (ELBO(free_bits=0.005), [0.004, 0.004], 0.5, ""),
        (ELBO(free_bits=8.0, free_bits_per="total"), [9.0] + 9 * [0.0], 0.5, ""),
        (ELBO(beta=0), [0.0, 0.0], 0.5, ""),  # nobody asks for a rate
        (ELBO(), [], 0.5, ""),  # deterministic
    ],
)
def test_alarm(objective: Any, rates: list[float], progress: float, sentence: str) -> None:
    alarm = CollapseWarning(objective)
    said = alarm.look(rates, distortion=90.0, progress=progress)
    assert sentence in said and bool(said) == bool(sentence)
    assert "\n" not in said
    assert not alarm.look(rates, distortion=90.0, progress=progress), "once is enough"


def test_units_are_those_of_evaluation(run: Path) -> None:
    """Counted chunk by chunk, and equal to what all codes at once say."""
    recipe = small()
    modality = recipe.make("modality")
    torch.manual_seed(0)
    model = Autoencoder(recipe, modality=modality)
    _, held_out = train_test_split(load_data(recipe, modality, "train"), 0.3, seed=0)
    units, codes = LatentUsage(), []
    for start in range(0, len(held_out), 100):
        batch = held_out.at(range(start, min(start + 100, len(held_out))))
        y = modality.prepare(batch.y)
        with torch.no_grad():
            (z,) = model.encode(y, model.embed({}, like=y))
            codes.append(z + torch.tensor([0.0, 1000.0]))
            with units.counting(model):
                h = model.encoder(y, model.embed({}, like=y), None)
                model.bottleneck(h, y[:, :0, 0, 0], num_samples=1, step=Source(0, "test").step(0))
    assert units.active == active_units(torch.cat(codes).double())
    seen = validate(model.eval(), modality, held_out, recipe.train, Ranks())
    assert seen.active_units == units.active
    assert sum(seen.rates) == pytest.approx(seen.terms["rate"], rel=1e-5)


def test_collapse_is_said_once_and_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = fit(small(objective__beta=1000.0), tmp_path / "r", progress=False)
    assert capfd.readouterr().err.count("the code has collapsed") == 1
    last = rows(run, "validation")[-1]
    assert last["active_units"] == 0 and max(last["rates"]) < 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {"bottleneck": {"name": "deterministic", "z_dim": 2}},
        {"prior": {"name": "flow", "layers": 2, "hidden": 8}},
        {"objective": {"name": "elbo", "free_bits": 1.0}},
    ],
    ids=["deterministic", "learned prior", "free bits"],
)
def test_no_false_alarm(
    changes: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = fit(small(**changes), tmp_path / "r", progress=False)
    said = capfd.readouterr().err
    assert "collapsed" not in said and "idle" not in said
    last = rows(run, "validation")[-1]
    columns = {"deterministic": 0, "flow": 1}
    part = changes.get("bottleneck", changes.get("prior", {})).get("name")
    assert len(last.get("rates", [])) == columns.get(part, 2) and last["active_units"] >= 1


# Estimates.


def test_dry_run_measures_and_writes_nothing(ae) -> None:
    words = ["train", "mnist-2d", "--data", "mnist-sample", "--set", "train.batch_size=100",
             "--set", "encoder.hidden=[32]", "--set", "train.epochs=3", "--dry-run"]  # fmt: skip
    found = json.loads(ae(*words, "--json").stdout)
    assert not list(Path().iterdir())
    assert found["shapes"] == {
        "y": [[1, 28, 28]], "x": [[1, 28, 28]], "h": [[32]], "z": [[2]],
        "params": [[1, 1, 28, 28]],
    }  # fmt: skip
    assert found["parameters"]["encoder"] == 784 * 32 + 32
    parts = {name: number for name, number in found["parameters"].items() if name != "all"}
    assert sum(parts.values()) == found["parameters"]["all"]
    assert found["steps"] == 3 * (found["examples"] // 100)
    assert found["seconds"] > found["steps"] * found["step_seconds"] > 0
    said = ae(*words).output
    assert "1x28x28" in said and "fp32 on cpu" in said and "all               about" in said


@pytest.mark.slow
def test_dry_run_of_a_recipe_with_everything() -> None:
    recipe = small(
        condition=["digit"],
        corruption={"name": "noise"},
        encoder={"name": "resnet", "widths": [4, 8]},
        decoder={"name": "resnet", "widths": [8, 4]},
        bottleneck={"name": "gaussian", "z_dim": 2, "spatial": True},
        prior={"name": "flow", "layers": 2, "hidden": 8},
        train__accumulate=2,
    )
    found = estimate(recipe)
    assert found.shapes["x"] == found.shapes["y"] == [(1, 28, 28)]
    assert len(found.shapes["z"]) == len(found.shapes["h"])
    assert found.parameters["prior"] and found.parameters["bottleneck"]
    assert found.examples_per_second == pytest.approx(2 * found.batch_size / found.step_seconds)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--set", "encoder.hiden=[3]"], 2, "did you mean 'hidden'?"),
        (["--data", "nowhere"], 2, "neither a file or folder"),
        (["--device", "cuda:99"], 2, "--device cuda:99"),
        (["--resume"], 2, "holds no run to resume"),
    ],
)
def test_dry_run_refuses_what_training_refuses(
    ae, words: list[str], code: int, sentence: str
) -> None:
    for more in ([], ["--dry-run"]):
        assert sentence in ae("train", "mnist-2d", *words, *more, code=code).output


def test_dry_run_blames_a_stranger_as_training_does(ae) -> None:
    @registry.encoders.register("liar")
    class Liar(torch.nn.Module):
        def __init__(self, *, in_shape, num_classes, cond_dim):
            super().__init__()
            self.out_shapes = ((8,),)

        def forward(self, x, c, mask):
            return (x.flatten(1),)

    words = ["train", "mnist-2d", "--data", "mnist-sample", "--set", "encoder.name=liar"]
    for more in (["--dry-run"], []):
        said = ae(*words, "--quiet", *more, code=1).output
        assert "encoder 'liar' of this process gives features on level 0 of shape (" in said
        assert "and must give (B, *out_shapes[i]), here (2, 8)" in said


def test_dry_run_in_a_folder_that_is_taken(ae, run: Path) -> None:
    assert (
        "already holds a run" in ae("train", "mnist-2d", "--out", run, "--dry-run", code=2).output
    )


# Runs.


@pytest.fixture
def several(run: Path, tmp_path: Path) -> Path:
    """A finished run, one cut off after half of it, and things that are none."""
    folder = tmp_path / "runs"
    shutil.copytree(run, folder / "whole")
    shutil.copytree(run, folder / "cut")
    config = json.loads((folder / "cut/config.json").read_text())
    config["recipe"]["train"]["lr"] = 0.25
    del config["checksum"]
    (folder / "cut/config.json").write_text(json.dumps(config))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "cut/metrics.jsonl").write_text("".join(lines[:4]) + lines[4][:20])
    for path in sorted((folder / "cut/checkpoints").iterdir()):
        shutil.rmtree(path)
    os.utime(folder / "whole/config.json", (1, 2**33))
    (folder / "broken").mkdir()
    (folder / "broken/config.json").write_text("{")
    (folder / "shards").mkdir()
    (folder / "notes.txt").write_text("")
    checkpoint_folder = checkpoint.checkpoints(run)[-1].folder
    shutil.copytree(checkpoint_folder, folder / "model")
    return folder


def test_runs_are_listed(ae, several: Path, run: Path) -> None:
    said = ae("runs")
    whole, cut = said.stdout.splitlines()[1:]
    last, best = rows(run, "train")[-1], checkpoint.best(run)
    assert best and last["step"]
    assert whole.split()[:4] == [
        "runs/whole",
        "mnist-2d",
        "finished",
        "{0}/{0}".format(last["step"]),
    ]
    assert f"{best.loss:.2f}" in whole
    assert cut.split()[:3] == ["runs/cut", "mnist-2d", "interrupted"]
    assert cut.split()[3] == f"{rows(run, 'train')[1]['step']}/{last['step']}"
    for name in ("broken", "shards", "model"):
        assert said.stderr.count(f"runs/{name}: ") == 1
    assert "notes" not in said.output
    found = json.loads(ae("runs", several, "--json").stdout)
    assert [Path(one["path"]).name for one in found] == ["whole", "cut"]
    assert found[0]["best"]["active_units"] == 2


def test_a_run_that_is_locked_is_running(several: Path) -> None:
    with locked(several / "cut"):
        assert read(several / "cut").state == "running"
    assert read(several / "cut").state == "interrupted"


def test_a_run_that_lost_its_patience_is_finished(tmp_path: Path) -> None:
    recipe = small(train__epochs=50, train__patience=2, train__lr=1e-12, train__ema=0.0)
    found = read(fit(recipe, tmp_path / "r", progress=False))
    assert found.state == "finished" and found.step < found.steps


def test_an_interrupted_run_says_how_far_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 20)
    with pytest.raises(Interrupted):
        fit(small(), tmp_path / "r", progress=False)
    found = read(tmp_path / "r")
    assert found.state == "interrupted" and 0 < found.step < found.steps


def test_runs_are_compared_and_drawn(ae, several: Path) -> None:
    pair = (several / "whole", several / "cut")
    said = ae("runs", *pair, "-o", "curves.png").output
    assert differing([read(folder) for folder in pair]) == {"train.lr": [5e-3, 0.25]}
    settings, outcomes = said.split("outcomes")
    assert "train.lr" in settings and "encoder" not in settings
    assert "active_units" in outcomes and "interrupted" in outcomes
    assert Path("curves.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads(ae("runs", *pair, "--json").stdout)
    assert found["settings"] == {"train.lr": [5e-3, 0.25]}
    assert len(found["outcomes"]["loss"]) == 2


def test_nothing_to_list(ae, tmp_path: Path) -> None:
    assert "there is no such folder" in ae("runs", code=2).output
    assert "ends in .png" in ae("runs", "-o", "curves.txt", code=2).output
    (tmp_path / "empty").mkdir()
    assert "no loss to draw" in ae("runs", "empty", "-o", "curves.png", code=2).output
    assert find(tmp_path / "empty") == ([], [])


ROW = '{"step": 14, "epoch": 1.0, "split": "train", "loss": 1.0}'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", "[1]"),
        ("metrics.jsonl", "5"),
        ("metrics.jsonl", '{"metrics": [1]}'),
        ("metrics.jsonl", ROW.replace("14", "-5")),
        ("metrics.jsonl", ROW.replace("14", "1e400")),
        ("metrics.jsonl", ROW.replace("14", "true")),
        ("metrics.jsonl", ROW.replace("14", "9" * 5000)),
        ("metrics.jsonl", ROW.replace("1.0, ", "1e-400, ").replace("1.0}", '"x"}')),
        ("metrics.jsonl", ROW.replace('"train"', "{}")),
        ("metrics.jsonl", ROW[:-1] + ', "rate": []}'),
        ("metrics.jsonl", "[" * 100_000),
        ("metrics.jsonl", '"\\ud800"'),
        ("timings.jsonl", '{"step": 1, "epoch": 1, "examples_per_second": "fast"}'),
        ("config.json", '{"recipe": {"name": "a", "train": {"epochs": "x", "patience": 0}}}'),
        ("config.json", '{"recipe": []}'),
        ("config.json", "[" * 100_000),
        ("config.json", '{"recipe": ' + '{"a": ' * 500 + "1" + "}" * 501),
    ],
)
def test_a_broken_run_is_named_and_the_others_are_listed(
    name: str, text: str, ae, run: Path, tmp_path: Path
) -> None:
    for other in ("bad", "good"):
        shutil.copytree(run, tmp_path / "runs" / other, ignore=shutil.ignore_patterns("*.png"))
    (tmp_path / "runs/bad" / name).write_text(text + "\n")
    said = ae("runs")
    assert [row.split()[0] for row in said.stdout.splitlines()] == ["run", "runs/good"]
    assert said.stderr.startswith("runs/bad: ") and len(said.stderr) < 1000
    ae("runs", "--json")


def test_a_run_of_pipes_does_not_hang(ae, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "runs/good")
    for name in ("config.json", "metrics.jsonl"):
        bad = tmp_path / "runs" / name.partition(".")[0]
        shutil.copytree(run, bad)
        (bad / name).unlink()
        os.mkfifo(bad / name)
    said = ae("runs")
    assert said.stderr.count("is a pipe, not a file") == 2 and "runs/good" in said.stdout


def test_listing_runs_builds_nothing(several: Path) -> None:
    code = (
        "import sys; from ae_toolkit.cli.app import main\n"
        "main(['runs'], standalone_mode=False)\n"
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules), 'imported too much'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=several.parent)


# The profiler.


def test_profiler_records_some_steps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = fit(small(), tmp_path / "r", progress=False, profile=True)
    trace = json.loads((run / TRACE_FILE).read_text())["traceEvents"]
    steps = {e["name"] for e in trace if str(e.get("name")).startswith("ProfilerStep#")}
    assert steps == {
        f"ProfilerStep#{SKIPPED_STEPS + WARMUP_STEPS + i}" for i in range(RECORDED_STEPS)
    }
    said = capfd.readouterr().err
    assert (
        f"in the mean of {RECORDED_STEPS}" in said
        and "aten::" in said
        and "ProfilerStep" not in said
    )


def test_profiler_of_a_short_training(ae, tmp_path: Path) -> None:
    said = ae("train", "mnist-2d", "--data", "mnist-sample", "--set", "train.epochs=3", "--profile",
              "--quiet", "--out", "r")  # fmt: skip
    assert "nothing was recorded" in said.output and not (tmp_path / "r" / TRACE_FILE).exists()


def test_trackers_of_nothing(tmp_path: Path) -> None:
    none = Trackers((), run=tmp_path, settings={})
    none.log(1, train={"loss": 1.0})
    none.close()


# What else a bottleneck can fail in.


def test_a_codebook_that_collapses_is_said_once(tmp_path: Path, capfd: Any) -> None:
    """All values but one of a number lie where no feature is, and nothing brings them back."""
    bottleneck = {"name": "fsq", "z_dim": 1, "num_levels": [30, 30]}
    recipe = small(bottleneck=bottleneck, prior="categorical", train__epochs=4)
    run = fit(recipe, tmp_path / "run", progress=False)
    said = capfd.readouterr().err
    assert said.count("the codebook has collapsed") == 1 and "of its 900 values occur" in said
    assert 0 < rows(run, "validation")[-1]["codebook_use"] < 0.2
    fine = {"name": "vq", "z_dim": 4, "codebook_size": 16}
    run = fit(recipe.with_({"bottleneck": fine}), tmp_path / "fine", progress=False)
    assert "collapsed" not in capfd.readouterr().err
    assert rows(run, "validation")[-1]["codebook_use"] > 0.3


def test_a_critic_that_wins_is_said_once(tmp_path: Path, capfd: Any) -> None:
    recipe = small(bottleneck={"name": "adversarial", "z_dim": 8, "weight": 0.0, "noise": 0.0})
    fit(recipe.with_({"train.epochs": 12}), tmp_path / "run", progress=False)
    said = capfd.readouterr().err
    assert said.count("of codes from the prior's, so they do not follow it") == 1
