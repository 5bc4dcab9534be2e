"""How far a training is: a bar, and a line for each validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ae_toolkit.console import Bar
from ae_toolkit.contracts import Callback
from ae_toolkit.training.state import Training
from ae_toolkit.training.step import TERM_NAMES


class Progress(Callback):
    """Shows a bar with epoch, loss and its parts, speed and time left.

    Args:
        bar: which is on the screen already.
    """

    def __init__(self, bar: Bar):
        self.bar = bar

    def on_start(self, training: Training) -> None:
        setup = training.setup
        self.bar.log(
            f"{setup.recipe.name}: {setup.model.num_parameters():,} parameters, "
            f"{len(setup.examples):,} examples, {setup.train.epochs:g} epochs, "
            f"{setup.schedule.steps:,} steps, {setup.engine}"
        )

    def on_losses(self, training: Training) -> None:
        schedule = training.setup.schedule
        epoch = int((training.step - 1) / schedule.per_epoch) + 1
        words, speed = terms_in_words(training.losses[-1]), training.examples_per_second
        self.bar.update(
            training.step,
            total=schedule.steps,
            title=f"epoch {epoch}/{training.setup.train.epochs:g}",
            text=f"loss {words}, {speed:,.0f} examples/s",
        )

    def on_validation(self, training: Training) -> None:
        report = training.report
        assert report is not None
        seen = report.validation.terms if report.validation else None
        epochs = f"epoch {report.epoch:.4g}/{training.setup.train.epochs:g}"
        self.bar.log(f"{epochs}: {losses_in_words(report.train, seen)}")


def terms_in_words(row: Iterable[float]) -> str:
    """Returns a row of `TERM_NAMES` for people: the loss, and its parts where it has several."""
    loss, *others = (f"{value:.2f}" if abs(value) >= 10 else f"{value:.3g}" for value in row)
    parts = [
        f"{name} {value}"
        for name, value in zip(TERM_NAMES[1:], others, strict=True)
        if float(value)
    ]
    return f"{loss} ({', '.join(parts)})" if len(parts) > 1 else loss


def losses_in_words(train: Mapping[str, float], validation: Mapping[str, float] | None) -> str:
    """Returns what came of an epoch for people; the parts of the loss are of the validation."""
    if validation is None:
        return f"training {terms_in_words(train.values())}"
    monitored = "".join(
        f"{name} {value:.4g}, " for name, value in validation.items() if name not in TERM_NAMES
    )
    terms = terms_in_words(validation[name] for name in TERM_NAMES)
    loss = terms_in_words([train["loss"], 0, 0, 0])
    return f"validation {terms}, {monitored}training {loss}"
