"""Every validation is written into the run directory: what repeats exactly, and what does not."""

from __future__ import annotations

from ae_toolkit.contracts import Callback
from ae_toolkit.training.state import Training


class Metrics(Callback):
    """Writes `metrics.jsonl` and `timings.jsonl`."""

    def on_validation(self, training: Training) -> None:
        report = training.report
        if training.logs is None or report is None:
            return
        row = report.validation.row if report.validation else None
        with training.retries.surviving("logs"):
            training.logs.write(
                training.step, report.epoch, report.train, row,
                report.seconds, report.examples_per_second,
            )  # fmt: skip
