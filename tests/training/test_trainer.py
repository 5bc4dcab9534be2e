"""Training: repeatable to the last bit, resumed exactly, honest about divergence."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import small

from ae_toolkit import RunError, UsageError, fit, load
from ae_toolkit.data.examples import Examples, choose_test_groups
from ae_toolkit.device import has_compiler
from ae_toolkit.errors import Interrupted
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import Train
from ae_toolkit.registry import corruptions, datasets, encoders
from ae_toolkit.runs import checkpoint
from ae_toolkit.runs.logs import Logs
from ae_toolkit.training import compilation
from ae_toolkit.training.distributed import Ranks
from ae_toolkit.training.engine import Engine
from ae_toolkit.training.optimizer import EMAOptimizer, StepCoefficients
from ae_toolkit.training.setup import Setup, prepare
from ae_toolkit.training.step import compiles_whole_steps, compute_terms, make_step, take_step
from ae_toolkit.training.validation import validate


def rows(run: Path, split: str) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def last_weights(run: Path) -> bytes:
    return (checkpoint.checkpoints(run)[-1].folder / checkpoint.WEIGHTS_FILE).read_bytes()


def test_golden_run(run: Path) -> None:
    """Twenty steps and more of a seeded run: the loss falls to where it fell before."""
    losses = [row["loss"] for row in rows(run, "validation")]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(64.8, abs=1)


def test_a_run_leaves_what_it_promises(run: Path) -> None:
    assert checkpoint.load_config(run).recipe == small()
    assert list(run.glob("figures/*.png"))
    row = rows(run, "train")[-1]
    assert row["loss"] == pytest.approx(row["distortion"] + row["rate"], rel=1e-4)
    timing = json.loads((run / "timings.jsonl").read_text().splitlines()[-1])
    assert timing["examples_per_second"] > 0
    assert not list(run.rglob(".*")), "a temporary file was left"


def test_same_seed_same_bits(run: Path, tmp_path: Path) -> None:
    again = fit(small(), tmp_path / "again", progress=False)
    assert last_weights(again) == last_weights(run)
    assert (again / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def setup_of(**changes: object) -> Setup:
    recipe, cpu = small(**changes), torch.device("cpu")
    return prepare(recipe, Engine.pick(recipe.train, cpu), cpu, Ranks())


def test_all_that_is_random_follows_from_the_seed() -> None:
    setups = [setup_of(train__seed=seed, train__validation=0.3) for seed in (0, 0, 1)]
    whole = [setup_of(train__seed=seed, train__validation=0) for seed in (0, 0, 1)]
    for a, b, c in (
        [setup.model.encoder.layers[0].weight for setup in setups],
        [setup.noise.draw(3)[0] for setup in setups],
        [torch.tensor([setup.held_out.y.sum(), len(setup.held_out)]) for setup in setups],
        [setup.batches.at(2).y for setup in whole],
    ):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_training_corrupts_augments_and_takes_as_many_samples_as_its_objective() -> None:
    code = {"bottleneck": {"name": "deterministic", "z_dim": 2}}
    setups = [setup_of(modality__shift=shift, **code) for shift in (0.0, 9.0)]
    plain, moved = (
        compute_terms(setup, setup.batches.at(0), Source(0, "test").step(0)).distortion
        for setup in setups
    )
    assert not torch.allclose(plain, moved, rtol=1e-3)
    setup = setup_of(objective={"name": "iwae", "num_samples": 3})
    terms = compute_terms(setup, setup.batches.at(0), Source(0, "test").step(0))
    assert terms.distortion.shape == (3, 64)


def test_dropout_is_for_training_only(tmp_path: Path) -> None:
    setup = setup_of(encoder__dropout=0.5)
    seen = [
        validate(
            setup.optimizer.ema_model(),
            setup.modality,
            setup.held_out,
            setup.train,
            Ranks(),
        )
        for _ in range(2)
    ]
    assert seen[0] == seen[1]
    config = checkpoint.config_json(setup.recipe)
    checkpoint.save(tmp_path / "r", setup.model.state_dict(), config)
    model = load(tmp_path / "r")
    items = [model.modality.from_tensor(y / 255) for y in setup.held_out.y[:2]]
    assert torch.equal(model.encode(items), model.encode(items))


def test_two_batches_are_as_one_of_twice_the_size() -> None:
    code = {"bottleneck": {"name": "deterministic", "z_dim": 2}}
    moments = []
    for sizes in ({"train__batch_size": 64}, {"train__batch_size": 32, "train__accumulate": 2}):
        setup = setup_of(**sizes, **code)
        coefficients = setup.optimizer.coefficients([0.001], first=0, steps=100)[0]
        take_step(setup, make_step(setup, compiled=False), 0, coefficients)
        moments.append(setup.optimizer.first)
    for whole, halves in zip(*moments, strict=True):
        assert torch.allclose(whole, halves, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"train__accumulate": 2, "train__clip": 1.0, "train__schedule": "one-cycle"},
        {"encoder__dropout": 0.2, "corruption__name": "noise", "train__weight_decay": 0.01},
        {"train__precision": "bf16", "modality__shift": 2.0, "train__ema": 0.0},
        pytest.param(
            {"train__compile": "on", "train__accumulate": 2, "encoder__dropout": 0.2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["accumulated", "noisy", "bf16", "compiled"],
)
def test_interrupted_run_resumes_to_the_same_bits(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "train__compile" in changes:
        need_compiler()
    recipe = small(**changes)
    whole = fit(recipe, tmp_path / "whole", progress=False)

    original, calls = Logs.write, []

    def write(self: Logs, *row: object) -> None:
        original(self, *row)
        calls.append(row)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Logs, "write", write)
    with pytest.raises(Interrupted, match=r"Stopped at step \d+ of \d+ .*--resume"):
        fit(recipe, tmp_path / "cut", progress=False)
    monkeypatch.undo()
    fit(recipe, tmp_path / "cut", resume=True, progress=False)
    assert last_weights(tmp_path / "cut") == last_weights(whole)
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_nan_names_step_and_term_and_keeps_the_good_checkpoint(tmp_path: Path) -> None:
    class Poison:
        """Turns the input to NaN at the 30th of 60 steps."""

        def out_shape(self, shape):
            return shape

        def __call__(self, x, y, mask, step):
            learning = torch.is_grad_enabled()  # not in rehearsals, validations or figures
            return (x * float("nan") if learning and step.progress > 28.5 / 60 else x), y

    corruptions.register("poison")(Poison)
    with pytest.raises(RunError) as caught:
        fit(small(corruption__name="poison", train__validation=0), tmp_path / "r", progress=False)
    assert "diverged at step 30: the distortion is nan" in str(caught.value)
    point = checkpoint.checkpoints(tmp_path / "r")[-1]
    assert str(point.folder) in str(caught.value)
    assert all(torch.isfinite(w).all() for w in checkpoint.load_weights(point.folder).values())


@pytest.mark.parametrize("split", ["training", "held out"])
def test_nan_in_the_data_is_said_as_that(split: str, tmp_path: Path) -> None:
    """Not as a learning rate that is too large: the example and its file are named."""

    @datasets.register("faulty")
    def faulty(*, modality, split):
        groups = [f"{i // 3}.csv" for i in range(300)]
        y = torch.rand(300, 1, 28, 28)
        y[bad + 1, 0, 3, 3] = float("nan")
        y[bad + 2, 0, 3, 3] = float("inf")
        return Examples(y, None, {}, groups)

    held_out = choose_test_groups([f"{i // 3}.csv" for i in range(300)], 0.05, seed=0)
    bad = next(i for i in range(0, 300, 3) if held_out[i] == (split == "held out"))
    num = sum(held_out == held_out[bad])
    recipe = small(data={"name": "faulty"}, train__epochs=2)
    with pytest.raises(RunError) as caught:
        fit(recipe, tmp_path / "r", progress=False)
    assert str(caught.value) == (
        f"the data holds nan or inf, in 2 of {num} examples; the first is number 2 of "
        f"'{bad // 3}.csv': mend it, or leave it out"
    )


def test_best_and_last_checkpoints_stay(run: Path) -> None:
    assert len(checkpoint.checkpoints(run)) <= 2
    best = checkpoint.best(run)
    assert best and best.loss == min(row["loss"] for row in rows(run, "validation"))
    assert load(run).folder == best.folder


def test_running_twice_in_one_folder_is_refused(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="already holds a run: add --resume"):
        fit(small(), run, progress=False)
    with pytest.raises(UsageError, match=r"another run: its train.lr is .*, not 0.5"):
        fit(small(train__lr=0.5), run, resume=True, progress=False)
    before = last_weights(run)
    fit(small(), run, resume=True, progress=False)  # finished: nothing left to do
    assert last_weights(run) == before
    assert f"{run} is finished: to go on, add --set train.epochs=8\n" in capfd.readouterr().err


def test_a_finished_run_goes_on_for_more_epochs_and_says_what_that_means(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    longer, copied = small(train__epochs=5), tmp_path / "r"
    shutil.copytree(run, copied)
    fit(longer, copied, resume=True, progress=False)
    said = capfd.readouterr().err
    assert "train.epochs was 4 and is 5: the learning rate goes on at 0.0005, where it had" in said
    assert [row["epoch"] for row in rows(copied, "train")] == [1, 2, 3, 4, 5]
    assert checkpoint.load_config(copied).recipe == longer
    with pytest.raises(
        UsageError, match=r"train.epochs=3 is less than this run has done, which is 5:"
    ):
        fit(small(train__epochs=3), copied, resume=True, progress=False)
    assert checkpoint.load_config(copied).recipe == longer


def test_early_stopping_that_is_called_off_goes_on(tmp_path: Path) -> None:
    recipe = small(train__patience=1, train__lr=1e-12, train__schedule="constant", train__ema=0.0)
    run = fit(recipe, tmp_path / "r", progress=False)
    assert len(rows(run, "validation")) < 4
    fit(recipe.with_({"train.patience": 0}), run, resume=True, progress=False)
    assert len(rows(run, "validation")) == 4


def test_half_a_checkpoint_is_passed_over(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    last = checkpoint.checkpoints(copy)[-1].folder
    later = last.with_name("step_9999999")
    shutil.copytree(last, later)
    state = later / checkpoint.STATE_FILE
    state.write_bytes(state.read_bytes()[:1000])
    fit(small(), copy, resume=True, progress=False)
    assert "cut short or broken; trying the one before" in capfd.readouterr().err


def test_own_encoder_by_decorator(tmp_path: Path) -> None:
    """Ten lines in a notebook cell, and it trains in place of the built-in one."""

    @encoders.register("linear")
    class Linear(torch.nn.Module):
        def __init__(self, *, in_shape, num_classes, cond_dim, width: int = 8):
            super().__init__()
            self.layer = torch.nn.Linear(in_shape[0] * in_shape[1] * in_shape[2], width)
            self.out_shapes = ((width,),)

        def forward(self, x, c, mask):
            return (self.layer(x.flatten(1)).tanh(),)

    recipe = small(train__epochs=1).with_({"encoder.name": "linear", "encoder.width": 4})
    run = fit(recipe, tmp_path / "r", progress=False)
    assert load(run).recipe.encoder.name == "linear"
    encoders._local.clear()
    with pytest.raises(RunError, match="needs encoder 'linear' of this process, which is not inst"):
        load(run)


def need_compiler() -> None:
    if not has_compiler(torch.device("cpu")):
        pytest.skip("needs a C++ compiler")


def test_compiled_step_agrees_with_eager(tmp_path: Path) -> None:
    need_compiler()
    short = {"train__epochs": 1, "train__batch_size": 256}
    eager = fit(small(**short), tmp_path / "eager", progress=False)
    compiled = fit(small(**short, train__compile="on"), tmp_path / "compiled", progress=False)
    mine, its = rows(eager, "validation")[-1], rows(compiled, "validation")[-1]
    assert its["loss"] == pytest.approx(mine["loss"], rel=1e-4)


@pytest.mark.slow
def test_compiling_is_tried_where_it_may_pay_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    need_compiler()
    short = small(train__epochs=1)
    fit(short, tmp_path / "short")
    assert "ompil" not in capfd.readouterr().err, "a short training pays for nothing"
    monkeypatch.setattr(compilation, "COMPILE_SECONDS", -1e9)
    tried = fit(short, tmp_path / "tried")
    said = capfd.readouterr().err
    assert "Trying whether compiling pays, which takes about " in said
    assert ("times as fast, so the rest" in said) != ("Compiling does not pay here: " in said)
    kept = json.loads((tried / "engine.json").read_text())["compiled"]
    forced = short.with_({"train.compile": "on" if kept else "off"})
    assert last_weights(fit(forced, tmp_path / "forced", progress=False)) == last_weights(tried)


def test_what_cannot_be_compiled_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need_compiler()
    if not compiles_whole_steps():
        pytest.skip("a PyTorch before 2.13 compiles what it can of a step")

    @corruptions.register("branching")
    class Branching:
        """Asks the data what to do, which no compiler can foresee."""

        def out_shape(self, shape):
            return shape

        def __call__(self, x, y, mask, step):
            return (x if x.sum().item() > 0 else -x), y

    recipe = small(corruption__name="branching", train__epochs=1)
    with pytest.raises(RunError, match=r"cannot be compiled whole .*: set train.compile=off"):
        fit(recipe.with_({"train.compile": "on"}), tmp_path / "on", progress=False)
    fit(recipe, tmp_path / "auto", progress=False)


def test_conditioned_and_spatial_and_importance_weighted(tmp_path: Path) -> None:
    recipe = small(
        condition=["digit"],
        encoder={"name": "conv", "widths": [4, 8]},
        decoder={"name": "conv", "widths": [8, 4]},
        bottleneck={"name": "gaussian", "z_dim": 2, "spatial": True},
        corruption={"name": "binarise"},
        likelihood={"name": "bernoulli"},
        objective={"name": "iwae", "num_samples": 3},
        train__epochs=1,
    )
    model = load(fit(recipe, tmp_path / "r", progress=False))
    sevens = model.sample(3, {"digit": 7}, seed=1)
    assert len(sevens) == 3
    with pytest.raises(UsageError, match="conditioned on 'digit'"):
        model.sample(3)
    with pytest.raises(UsageError, match="a class from 0 to 9, not 11"):
        model.sample(3, {"digit": 11})


def test_learner_averages_what_it_moves() -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = EMAOptimizer(layer, copy.deepcopy(layer), Train(ema=0.5))
    start = layer.weight.detach().clone()
    layer.weight.grad = torch.ones_like(layer.weight)
    layer.bias.grad = torch.ones_like(layer.bias)
    optimizer.step(StepCoefficients(*optimizer.coefficients([0.1], first=100, steps=200)[0]))
    assert torch.allclose(optimizer.ema_model().weight, (start + layer.weight) / 2)


def test_an_update_is_adamw_eager_and_compiled_alike() -> None:
    """Both ways of moving weights agree with `torch.optim.AdamW`, decay and clipping included."""
    need_compiler()
    torch.manual_seed(0)
    first = torch.nn.Linear(3, 4)
    layers = [first, copy.deepcopy(first), copy.deepcopy(first)]
    train = Train(weight_decay=0.1, clip=0.5, lr=0.1, betas=(0.8, 0.95))
    eager, compiled = (EMAOptimizer(layer, copy.deepcopy(layer), train) for layer in layers[:2])
    groups = [
        {"params": [layers[2].weight], "weight_decay": 0.1},
        {"params": [layers[2].bias], "weight_decay": 0.0},
    ]
    library = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95))
    update = torch.compile(compiled.step, dynamic=False)
    for step in range(3):
        slopes = [torch.randn(4, 3), torch.randn(4)]
        for layer in layers:
            layer.weight.grad, layer.bias.grad = (slope.clone() for slope in slopes)
        pace = eager.coefficients([0.1], first=step, steps=3)[0]
        eager.step(StepCoefficients(*pace.unbind()))
        update(StepCoefficients(*pace.unbind()))
        torch.nn.utils.clip_grad_norm_(layers[2].parameters(), 0.5)
        library.step()
    for layer in layers[:2]:
        assert torch.allclose(layer.weight, layers[2].weight, atol=1e-6)
        assert torch.allclose(layer.bias, layers[2].bias, atol=1e-6)
    for one, other in zip(eager.average, compiled.average, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def need_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.mark.cuda
def test_a_gpu_learns_what_a_cpu_learns(run: Path, tmp_path: Path) -> None:
    need_cuda()
    there = fit(small(train__compile="off"), tmp_path / "r", device="cuda", progress=False)
    mine, its = rows(run, "validation")[-1], rows(there, "validation")[-1]
    assert its["loss"] == pytest.approx(mine["loss"], rel=0.1)


@pytest.mark.cuda
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_gpu_learns_the_same_by_graphs(accumulate: int, tmp_path: Path) -> None:
    """Compiled whole, with CUDA graphs, steps do what they do eagerly."""
    need_cuda()
    from torch._dynamo.utils import counters

    counters.clear()
    short = small(train__accumulate=accumulate, train__clip=1.0)
    losses = []
    for name in ("off", "on"):
        there = fit(
            short.with_({"train.compile": name}), tmp_path / name, device="cuda", progress=False
        )
        losses.append([row["loss"] for row in rows(there, "validation")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert not counters["inductor"]["cudagraph_skips"]


@pytest.mark.cuda
def test_what_began_on_a_cpu_goes_on_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    need_cuda()
    fit(small(), tmp_path / "r", device="cpu", progress=False)
    last = checkpoint.checkpoints(tmp_path / "r")[-1]
    last.folder.rename(tmp_path / "gone")
    fit(small(), tmp_path / "r", device="cuda", resume=True, progress=False)
    assert "what began on cpu goes on on cuda: not bit for bit" in capfd.readouterr().err


@pytest.mark.cuda
def test_a_gpu_is_fed_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned windows, copied by another thread, hold what the plain way holds."""
    need_cuda()
    monkeypatch.setattr("ae_toolkit.data.examples.ON_DEVICE", 0)
    monkeypatch.setattr("ae_toolkit.data.batches.ON_DEVICE", 0)
    there = fit(small(), tmp_path / "gpu", device="cuda", progress=False)
    here = fit(small(), tmp_path / "cpu", device="cpu", progress=False)
    mine, its = rows(here, "validation")[-1], rows(there, "validation")[-1]
    assert its["loss"] == pytest.approx(mine["loss"], rel=0.1)


@pytest.mark.slow
def test_read_ahead_data_trains_and_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ae_toolkit.data.examples.ON_DEVICE", 0)
    monkeypatch.setattr("ae_toolkit.data.batches.ON_DEVICE", 0)
    whole = fit(small(), tmp_path / "whole", progress=False)
    cut = fit(small(), tmp_path / "cut", progress=False)
    shutil.rmtree(checkpoint.checkpoints(cut)[-1].folder)
    fit(small(), cut, resume=True, progress=False)
    assert last_weights(cut) == last_weights(whole)
    assert rows(whole, "validation")[-1]["loss"] < 100
