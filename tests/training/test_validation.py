"""By which number the best checkpoint is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import small

from ae_toolkit import UsageError, fit
from ae_toolkit.runs import checkpoint


@pytest.mark.parametrize(("monitor", "mode"), [("rate", "max"), ("psnr", "max"), ("mse", "min")])
def test_the_best_checkpoint_is_known_by_the_number_that_is_asked_for(
    monitor: str, mode: str, tmp_path: Path
) -> None:
    recipe = small(train__monitor=monitor, train__monitor_mode=mode, train__epochs=3)
    run = fit(recipe, tmp_path / "run", keep=9, progress=False)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "validation"]
    choose = min if mode == "min" else max
    best = checkpoint.best(run)
    assert best is not None
    assert best.step == choose(rows, key=lambda row: row[monitor])["step"]
    assert best.loss == next(row["loss"] for row in rows if row["step"] == best.step)


def test_a_number_that_there_is_not_is_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no number 'psnrr': did you mean 'psnr'"):
        fit(small(train__monitor="psnrr"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "checkpoints").exists()
