"""Callbacks of a user's own: in a script, by a name, and beside several ranks' worth of others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, small

from ae_toolkit import UsageError, fit, registry
from ae_toolkit.contracts import Callback


class Notes(Callback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.reports: list[Any] = []

    def on_start(self, training: Any) -> None:
        self.told.append(("start", training.step))

    def on_step(self, training: Any) -> None:
        self.told.append(("step", training.step))

    def on_losses(self, training: Any) -> None:
        self.told.append(("losses", training.step))
        assert len(training.losses[-1]) == 4 and training.examples_per_second > 0

    def on_validation(self, training: Any) -> None:
        self.told.append(("validation", training.step))
        self.reports.append(training.report)

    def on_end(self, training: Any) -> None:
        self.told.append(("end", training.step))


def test_a_callback_is_told_of_everything_in_order(tmp_path: Path) -> None:
    notes = Notes()
    fit(small(train__epochs=2), tmp_path / "r", progress=False, callbacks=[notes])
    each = [(what, step) for what, step in notes.told if what != "losses"]
    steps = 2 * 14
    assert each[0] == ("start", 0) and each[-1] == ("end", steps)
    assert [step for what, step in each if what == "step"] == [*range(1, steps + 1)]
    assert [step for what, step in each if what == "validation"] == [14, 28]
    assert notes.told.index(("losses", 14)) < notes.told.index(("validation", 14))
    assert [report.epoch for report in notes.reports] == [1, 2]
    assert notes.reports[1].train["loss"] < notes.reports[0].train["loss"]


def test_the_end_is_told_of_whatever_ends_a_training(tmp_path: Path) -> None:
    class Failing(Notes):
        def on_validation(self, training: Any) -> None:
            raise ZeroDivisionError

    failing = Failing()
    with pytest.raises(ZeroDivisionError):
        fit(small(), tmp_path / "r", progress=False, callbacks=[failing])
    assert failing.told[-1] == ("end", 14)


def test_gradients_are_there_for_a_callback_and_change_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []

    class GradientNorm(Callback):
        needs_gradients = True

        def on_step(self, training: Any) -> None:
            grads = [p.grad for p in training.setup.model.parameters()]
            norms.append(float(torch.nn.utils.get_total_norm(grads)))

    fit(small(train__compile="off"), tmp_path / "r", progress=False, callbacks=[GradientNorm()])
    assert len(norms) == 4 * 14 and all(norm > 0 for norm in norms)
    lines = [(folder / "metrics.jsonl").read_bytes() for folder in (run, tmp_path / "r")]
    assert lines[0] == lines[1]


def test_a_registered_callback_is_chosen_by_its_name(ae: Any) -> None:
    made: list[Notes] = []

    @registry.callbacks.register("notes")
    class Registered(Notes):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    words = ("train", "mnist-2d", "--data", "mnist-sample", "--set", "train.epochs=1", "--quiet")
    ae(*words, "--callback", "notes", "--out", "r")
    assert made[0].told[-1][0] == "end"
    said = ae(*words, "--callback", "note", "--out", "s", code=2).output
    assert "no callback 'note': did you mean 'notes'?" in said and not Path("s").exists()


def test_the_page_on_training_shows_a_callback_that_works(tmp_path: Path, capsys: Any) -> None:
    page = (ROOT / "docs/training.md").read_text()
    [code] = re.findall(r"```python\n(import torch\n.*?)```", page, re.S)
    code = code.replace('"runs/norms"', repr(str(tmp_path / "norms")))
    code = code.replace('"mnist-sample"}', '"mnist-sample", "train.epochs": 1}')
    exec(code, {})
    assert re.match(r"1 \d+\.\d+\n2 \d+\.\d+\n", capsys.readouterr().out)


def test_unknown_callbacks_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no callback 'nothing'"):
        fit(small(), tmp_path / "r", progress=False, callbacks=["nothing"])
    assert not (tmp_path / "r").exists()
